// Long runs at a glance: what happened how often over virtual time, and how memory is mapped.
"use strict";

septum.charts = (() => {
  const STEPS_MIN = 5000; // a shorter run is its ladder
  const BINS = 240;
  const HEIGHT = 150;

  // What is counted: title, and for each series a name, a style variable, and a test of a form.
  const is = (tag, more = () => true) => (form) => form.tag === tag && more(form);
  const COUNTED = [
    ["Faults and splits", [
      ["EPT violations", "--chart-1", is("kvm_page_fault"), []],
      ["splits", "--chart-2", is("kvm_mmu_split_huge_page"), [6, 3]],
      ["conversions", "--chart-3", is("conversion"), [2, 2]],
    ]],
    ["SEAMCALLs", [
      ["all", "--chart-1", is("seamcall"), []],
      ["not successful", "--chart-2", is("seamcall", (f) => f.texts.rax !== "0x0"), [6, 3]],
    ]],
    ["mmu_lock taken", [
      ["for reading", "--chart-1", is("lock", (f) => f.texts.op === "lock"
        && f.texts.lock.endsWith("mmu_lock") && f.texts.mode === "sh"), []],
      ["for writing", "--chart-2", is("lock", (f) => f.texts.op === "lock"
        && f.texts.lock.endsWith("mmu_lock") && f.texts.mode === "ex"), [6, 3]],
    ]],
  ];

  class Charts {
    constructor(root, run, memory, onStep) {
      this.root = root;
      this.run = run;
      this.memory = memory;
      this.onStep = onStep;
      this.shown = run.nr >= STEPS_MIN && run.end > run.start;
      root.hidden = !this.shown;
      if (!this.shown) return;
      this.width = (run.end - run.start) / BINS;
      this.times = Array.from({ length: BINS }, (_, bin) => (run.start + bin * this.width) / 1e6);
      this.series = this._count();
      this.leaves = this._leaves();
      this.draw();
      new ResizeObserver(() => this._resize()).observe(root);
    }

    _bin(step) {
      return Math.min(BINS - 1, Math.floor((this.run.time[step] - this.run.start) / this.width));
    }

    _count() {
      const { run } = this;
      const all = COUNTED.flatMap(([, series]) => series);
      const counters = run.forms.map((form) =>
        all.map((each, at) => (each[2](form) ? at : -1)).filter((at) => at >= 0));
      const counts = all.map(() => new Array(BINS).fill(0));
      this.first = new Array(BINS).fill(-1); // the first step of each bin
      for (let step = 0; step < run.nr; step++) {
        const bin = this._bin(step);
        if (this.first[bin] < 0) this.first[bin] = step;
        for (const at of counters[run.form[step]]) counts[at][bin]++;
      }
      return counts;
    }

    // MiB that the S-EPTs map by 2 MB and by 4 KB leaves, at the end of each bin.
    _leaves() {
      const c = this.memory.changes;
      const kind = this.memory.values.map(([words]) =>
        /2M$|1G$/.test(words) ? 0 : /4K$/.test(words) ? 1 : 2);
      const now = [0, 0, 0];
      const found = [new Array(BINS).fill(null), new Array(BINS).fill(null)];
      for (let at = 0; at < c.nr; at++) {
        if (c.layer[at]) continue;
        now[kind[c.before[at]]] -= c.count[at] / 256;
        now[kind[c.after[at]]] += c.count[at] / 256;
        if (!c.step[at]) continue;
        const bin = this._bin(c.step[at] - 1);
        found[0][bin] = now[0];
        found[1][bin] = now[1];
      }
      for (const series of found)
        series.forEach((value, bin) => (series[bin] = value ?? series[bin - 1] ?? 0));
      return found;
    }

    draw() {
      if (!this.shown) return;
      const holder = this.root.querySelector(".charts-body");
      holder.replaceChildren();
      this.plots = [];
      let at = 0;
      for (const [title, series] of COUNTED) {
        const data = series.map(() => this.series[at++]);
        this._plot(holder, title, series, data, true);
      }
      this._plot(holder, "Private memory by leaf size, MiB",
        [["2M leaves", "--chart-1", null, []], ["4K leaves", "--chart-2", null, [6, 3]]],
        this.leaves, false);
    }

    _plot(holder, title, series, data, steps) {
      const style = getComputedStyle(document.documentElement);
      const colour = (name) => style.getPropertyValue(name).trim();
      const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 },
        ticks: { stroke: colour("--line"), width: 1 }, font: "11px system-ui" };
      const paths = steps ? uPlot.paths.stepped({ align: 1 }) : undefined;
      const plot = new uPlot({
        title,
        width: this._width(holder),
        height: HEIGHT,
        cursor: { sync: { key: "septum" }, drag: { x: true, y: false } },
        scales: { x: { time: false } },
        axes: [{ ...axis, size: 28, values: (_, all) => all.map((ms) => `${ms} ms`) },
          { ...axis, size: 52 }],
        series: [{ label: "virtual time", value: (_, ms) => (ms === null ? "—" : `${ms.toFixed(1)} ms`) },
          ...series.map(([label, name, , dash]) => ({ label, stroke: colour(name), width: 1.5, dash,
            points: { show: false }, paths }))],
        hooks: { draw: [(self) => this._now(self, colour("--accent"))] },
      }, [this.times, ...data], holder);
      plot.over.addEventListener("click", () => this._clicked(plot));
      this.plots.push(plot);
    }

    _width(holder) {
      const width = holder.clientWidth || 600;
      return Math.floor(width > 900 ? (width - 24) / 2 : width);
    }

    // Where the selected step is in time.
    _now(plot, colour) {
      if (this.step === undefined) return;
      const x = plot.valToPos(this.run.time[this.step] / 1e6, "x", true);
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.strokeStyle = colour;
      ctx.lineWidth = 2;
      ctx.setLineDash([]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.restore();
    }

    _clicked(plot) {
      let bin = plot.cursor.idx;
      if (bin === null || bin === undefined) return;
      while (bin < BINS && this.first[bin] < 0) bin++;
      if (bin < BINS) this.onStep(this.first[bin]);
    }

    goto(step) {
      this.step = step;
      for (const plot of this.plots ?? []) plot.redraw(false);
    }

    _resize() {
      const holder = this.root.querySelector(".charts-body");
      const width = this._width(holder);
      for (const plot of this.plots) if (plot.width !== width) plot.setSize({ width, height: HEIGHT });
    }
  }

  return { Charts };
})();
