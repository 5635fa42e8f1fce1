// The page: one selected step, which everything follows; keys, links, and what is shown.
"use strict";

septum.page = (() => {
  class Page {
    constructor(run) {
      this.run = run;
      this.step = 0;
      this.memory = new septum.memory.Memory(run);
      this.rows = new septum.rows.Rows(run);
      this.locks = new septum.locks.Locks(run);
      const byId = (id) => document.getElementById(id);
      const onStep = (step, open = true) => this.select(step, open);
      this.ladder = new septum.ladder.Ladder(byId("ladder"), run, this.rows, this.locks, onStep);
      this.details = new septum.details.Details(byId("details"), run, this.rows, this.memory,
        this.locks, onStep);
      byId("map").hidden = !run.head.vms.length;
      this.map = run.head.vms.length
        ? new septum.map.Map2M(byId("map"), run, this.memory, () => {}) : null;
      this.charts = new septum.charts.Charts(byId("charts"), run, this.memory, onStep);
      this.status = byId("status");
      this._controls();
      this._legend();
      addEventListener("keydown", (event) => this._key(event));
      addEventListener("hashchange", () => this._fromHash());
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this._theme());
      const [finding] = run.head.findings;
      if (!this._fromHash()) this.select(finding ?? 0, finding !== undefined, false);
      this.map?.lookAt(this.memory.changedNear(this.step));
    }

    // Make `step` the selected one. `open`: its row is shown even if it is folded.
    select(step, open = false, link = true) {
      this.step = Math.max(0, Math.min(this.run.nr - 1, step));
      this.memory.goto(this.step);
      this.ladder.select(this.step, open);
      this.details.show(this.step);
      this.map?.goto(this.step);
      this.charts.goto(this.step);
      this.status.textContent = `step ${this.step} of ${this.run.nr - 1}: `
        + septum.words.step(this.run, this.step);
      document.body.dataset.step = this.step;
      if (link) history.replaceState(null, "", `#step=${this.step}`);
    }

    _fromHash() {
      const found = /^#step=(\d+)$/.exec(location.hash);
      if (!found) return false;
      this.select(Number(found[1]), true, false);
      return true;
    }

    // The page's colours changed.
    _theme() {
      this.map?.draw();
      this.charts.draw();
    }

    // What keys and buttons do.
    moves() {
      const go = (step) => this.select(step);
      return {
        next: () => go(this.ladder.stepAfter(1)),
        previous: () => go(this.ladder.stepAfter(-1)),
        nextStep: () => this.select(this.step + 1, true),
        previousStep: () => this.select(this.step - 1, true),
        nextChange: () => this._change(true),
        previousChange: () => this._change(false),
        finding: () => this._finding(),
        first: () => this.select(0),
        last: () => this.select(this.run.nr - 1),
        open: () => this.select(this.step, true),
        help: () => this._help(),
      };
    }

    _change(forward) {
      if (!this.map) return;
      const { vm, gfn } = this.map;
      const step = this.memory.nextChange(vm.id, gfn, this.step, forward);
      if (step >= 0) this.select(step, true);
      else this.status.textContent = `no ${forward ? "later" : "earlier"} change of gfn `
        + septum.words.hex(gfn);
    }

    _finding() {
      const all = this.run.head.findings;
      const next = all.find((step) => step > this.step) ?? all[0];
      if (next !== undefined) this.select(next, true);
    }

    _help() {
      const help = document.getElementById("help");
      if (help.open) help.close();
      else help.showModal();
    }

    _key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)
        && !["?", "n", "p", "j", "k"].includes(event.key)) return;
      const move = {
        ArrowDown: "next", j: "next", ArrowUp: "previous", k: "previous",
        ArrowRight: "nextStep", l: "nextStep", ArrowLeft: "previousStep", h: "previousStep",
        n: "nextChange", p: "previousChange", f: "finding", Home: "first", End: "last",
        Enter: "open", "?": "help",
      }[event.key];
      const layer = Number(event.key) - 1;
      if (this.map && layer >= 0 && layer < this.run.head.layers.length) {
        this._setLayer(layer);
        return;
      }
      if (!move || (event.key === "Enter" && /^(A|BUTTON|SUMMARY)$/.test(event.target.tagName)))
        return;
      if (document.getElementById("help").open && move !== "help") return;
      event.preventDefault();
      this.moves()[move]();
    }

    _setLayer(layer) {
      this.map.setLayer(layer);
      document.querySelector(`#layers input[value="${layer}"]`).checked = true;
    }

    _controls() {
      const moves = this.moves();
      for (const button of document.querySelectorAll("button[data-move]"))
        button.addEventListener("click", () => moves[button.dataset.move]());
      if (!this.map) return;
      const label = d3.select("#layers").selectAll("label").data(this.run.head.layers).join("label");
      label.append("input").attr("type", "radio").attr("name", "layer")
        .attr("value", (_, at) => at).property("checked", (_, at) => at === 0)
        .on("change", (event) => this._setLayer(Number(event.target.value)));
      label.append("span").text((name) => name);
      const vms = d3.select("#vms").attr("hidden", this.run.head.vms.length > 1 ? null : "");
      vms.selectAll("option").data(this.run.head.vms).join("option")
        .attr("value", (_, at) => at).text((vm) => `VM ${vm.id}`);
      vms.on("change", (event) => {
        this.map.setVm(this.run.head.vms[event.target.value]);
        this.map.draw();
      });
    }

    // What the marks and bars of the ladder are.
    _legend() {
      const locks = this.locks.names.slice(0, 24);
      const item = d3.select("#locks-legend").selectAll("li").data(locks).join("li");
      item.append("span").attr("class", (name) => `swatch lock-${this.locks.number(name) % 6}`)
        .text((name) => this.locks.letter(name));
      item.append("span").text((name) => ` ${name}`);
      const { preemptions, marksPreemptions } = this.rows;
      document.getElementById("preemptions").textContent = marksPreemptions
        ? septum.words.count(preemptions, "preemption")
        : `${preemptions.toLocaleString("en")} switches between tasks that could go on: `
          + "the schedule's way, not marked";
    }
  }

  async function start() {
    try {
      septum.open = new Page(await septum.data.load());
      document.documentElement.dataset.ready = "yes";
      performance.mark("ready");
    } catch (error) {
      console.error(error);
      const notice = document.getElementById("notice");
      notice.textContent = `The page cannot be shown: ${error.message}`;
      notice.hidden = false;
    }
  }

  start();
  return { Page };
})();
