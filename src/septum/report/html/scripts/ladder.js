// The ladder: a lane for each task, time downwards. Only the rows in view are in the document.
"use strict";

septum.ladder = (() => {
  const SCROLL_MAX = 8e6; // pixels; browsers lose precision beyond some more
  const MORE = 12; // rows drawn above and below the view
  const SLOTS = 4; // bars beside each other in one lane
  const LANE_MIN = 3; // pixels: some hundred vCPUs fit
  const NAME_WIDTH = 13; // pixels that a lane's name needs
  const MARKS = {
    preempted: ["▶", "preempted here"],
    injected: ["!", "injected failure"],
    broken: ["✕", "promise broken"],
    step: ["●", "step"],
  };

  class Ladder {
    constructor(root, run, rows, locks, onSelect) {
      this.run = run;
      this.rows = rows;
      this.locks = locks;
      this.onSelect = onSelect;
      this.selected = 0;
      this.head = root.querySelector(".lanes-head");
      this.view = root.querySelector(".rows");
      this.space = root.querySelector(".rows-space");
      this.bars = d3.select(root.querySelector(".bars"));
      this.body = d3.select(root.querySelector(".rows-body"));
      this.view.addEventListener("scroll", () => this.draw());
      this.view.addEventListener("click", (event) => this._clicked(event));
      new ResizeObserver(() => this.layout()).observe(this.view);
      this.layout();
    }

    // Sizes that depend on the width of the view.
    layout() {
      const narrow = this.view.clientWidth < 560;
      const lanes = this.run.tasks.length;
      this.rowHeight = narrow ? 40 : 24;
      const room = narrow ? 84 : lanes <= 3 ? 130 : 240;
      this.laneWidth = Math.max(LANE_MIN, Math.min(narrow ? 28 : 70, room / lanes));
      this.view.parentElement.classList.toggle("narrow", narrow);
      this.view.classList.toggle("names-tasks", this.laneWidth < NAME_WIDTH);
      this.view.style.setProperty("--row", `${this.rowHeight}px`);
      this.view.parentElement.style.setProperty("--lane", `${this.laneWidth}px`);
      this.view.parentElement.style.setProperty("--lanes", lanes);
      const nr = this.rows.all.length;
      this.height = Math.min(SCROLL_MAX, nr * this.rowHeight);
      this.scale = (nr * this.rowHeight) / this.height;
      this.space.style.height = `${this.height}px`;
      this._drawHead();
      this.draw();
    }

    _drawHead() {
      const each = Math.ceil(NAME_WIDTH / this.laneWidth); // name every so many lanes
      d3.select(this.head).selectAll("span").data(this.run.tasks).join("span")
        .attr("class", "lane-name").attr("title", (task) => task)
        .text((task, at) => (at % each ? "" : task));
    }

    get visible() {
      return Math.ceil(this.view.clientHeight / this.rowHeight);
    }

    // The row at the top of the view, as a fraction.
    get top() {
      return (this.view.scrollTop * this.scale) / this.rowHeight;
    }

    draw() {
      const first = Math.max(0, Math.floor(this.top) - MORE);
      const last = Math.min(this.rows.all.length, Math.ceil(this.top) + this.visible + MORE);
      const base = this.view.scrollTop - (this.top - first) * this.rowHeight;
      const drawn = [];
      for (let at = first; at < last; at++) drawn.push({ at, row: this.rows.all[at] });
      this.body.style("transform", `translateY(${base}px)`);
      this.bars.style("transform", `translateY(${base}px)`);
      this.body.selectAll("div.row").data(drawn, (d) => `${d.row.kind}${d.row.start}`)
        .join((enter) => this._enter(enter)).order()
        .attr("id", (d) => `row-${d.at}`)
        .attr("aria-setsize", this.rows.all.length).attr("aria-posinset", (d) => d.at + 1)
        .attr("aria-selected", (d) => d.at === this.selected)
        .classed("selected", (d) => d.at === this.selected);
      if (drawn.length) this._drawBars(first, last);
    }

    _enter(enter) {
      const row = enter.append("div").attr("role", "option")
        .attr("class", (d) => `row ${d.row.kind} ${this._mark(d.row)}`);
      row.append("span").attr("class", "number")
        .text((d) => (d.row.kind === "step" ? d.row.start : ""));
      row.append("span").attr("class", "time")
        .text((d) => septum.words.clock(this.run.time[d.row.start]));
      const lanes = row.append("span").attr("class", "lanes");
      lanes.filter((d) => d.row.kind === "step").append("span").attr("class", "mark")
        .style("left", (d) => `${(this.run.task[d.row.start] + 0.5) * this.laneWidth}px`)
        .attr("title", (d) => MARKS[this._mark(d.row)][1])
        .text((d) => MARKS[this._mark(d.row)][0]);
      const text = row.append("span").attr("class", "text")
        .attr("title", (d) => (d.row.kind === "step" ? septum.words.step(this.run, d.row.start) : null));
      text.filter((d) => d.row.kind !== "step").text((d) => `⋯ ${this.rows.note(d.row)}`);
      const steps = text.filter((d) => d.row.kind === "step");
      steps.filter((d) => MARKS[this._mark(d.row)] && this._mark(d.row) !== "step").append("b")
        .text((d) => `${MARKS[this._mark(d.row)][1]}: `);
      steps.append("span").attr("class", "task").text((d) => `${this._task(d.row)} `);
      steps.append("span").text((d) => septum.words.step(this.run, d.row.start));
      return row;
    }

    _task(row) {
      return this.run.tasks[this.run.task[row.start]];
    }

    _mark(row) {
      return row.kind === "step" ? this.rows.mark(this.run.formOf(row.start)) || "step" : "";
    }

    // Locks held, as bars beside the marks of their lane. One within a single row is not drawn.
    _drawBars(first, last) {
      const all = this.rows.all;
      const bars = [];
      const slots = new Map();
      for (const held of this.locks.between(all[first].start, all[last - 1].end)) {
        const from = Math.max(first, this.rows.rowOf(held.start));
        const to = held.end >= all[last - 1].end ? last : this.rows.rowOf(held.end) + 1;
        if (to - from < 2) continue;
        const taken = slots.get(held.task) ?? [];
        let slot = taken.findIndex((end) => end <= from);
        if (slot < 0) slot = taken.length;
        taken[slot] = to;
        slots.set(held.task, taken);
        bars.push({ held, from, to, slot: slot % SLOTS });
      }
      const step = Math.max(3, Math.min(9, this.laneWidth / 2 / SLOTS));
      this.bars.selectAll("div.bar").data(bars, (b) => `${b.held.task} ${b.held.start}`)
        .join((enter) => enter.append("div"))
        .attr("class", (b) => `bar lock-${this.locks.number(b.held.lock) % 6}`)
        .classed("shared", (b) => b.held.shared)
        .attr("title", (b) => `${b.held.lock}${b.held.shared ? " (shared)" : ""} held by `
          + this.run.tasks[b.held.task])
        .style("left", (b) => `${b.held.task * this.laneWidth + b.slot * step + 1}px`)
        .style("width", `${step - 1}px`)
        .style("top", (b) => `${(b.from - first + 0.5) * this.rowHeight}px`)
        .style("height", (b) => `${(b.to - b.from - 1) * this.rowHeight}px`)
        .text((b) => (step > 6 && b.to - b.from > 2 ? this.locks.letter(b.held.lock) : ""));
    }

    // Make a step's row the selected one, in view. `open`: it must not stay in a fold.
    select(step, open) {
      let at = this.rows.rowOf(step);
      if (open && this.rows.all[at].kind !== "step") {
        this.rows.open(at, step);
        at = this.rows.rowOf(step);
        this.selected = at;
        this.layout();
      }
      this.selected = at;
      this.view.setAttribute("aria-activedescendant", `row-${at}`);
      this.show(at);
    }

    show(at) {
      const top = Math.ceil(this.top);
      if (at < top + 1 || at > top + this.visible - 3) {
        const goal = Math.max(0, at - Math.floor(this.visible / 3));
        this.view.scrollTop = (goal * this.rowHeight) / this.scale;
      }
      this.draw();
    }

    // The step that a move by so many rows goes to: a fold's last one.
    stepAfter(rows) {
      const at = Math.max(0, Math.min(this.rows.all.length - 1, this.selected + rows));
      return this.rows.all[at].end - 1;
    }

    _clicked(event) {
      const at = event.target.closest(".row")?.id.slice(4);
      if (at === undefined) return;
      const row = this.rows.all[Number(at)];
      if (row.kind !== "step" && Number(at) === this.selected) this.onSelect(row.start, true);
      else this.onSelect(row.end - 1, false);
    }
  }

  return { Ladder };
})();
