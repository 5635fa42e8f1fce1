// The guests' memory after a step: 2 MB cells, each one value or 512, for every VM and layer.
"use strict";

septum.memory = (() => {
  const NR = 512;

  class Memory {
    constructor(run) {
      this.run = run;
      this.changes = run.changes;
      this.values = run.head.values;
      this.layers = run.head.layers;
      this.cells = []; // [VM][layer]: 2 MB -> a value or 512
      this.applied = 0; // changes that are in
      for (const vm of run.head.vms) this.cells[vm.id] = this.layers.map(() => new Map());
    }

    // The first change that is later than `step`; -1 is before the first step.
    _after(step) {
      let low = 0;
      let high = this.changes.nr;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.changes.step[middle] <= step + 1) low = middle + 1;
        else high = middle;
      }
      return low;
    }

    // Make it as it is after `step`.
    goto(step) {
      const { vm, layer, gfn, count, before, after } = this.changes;
      const goal = this._after(step);
      while (this.applied < goal) {
        const at = this.applied++;
        this._set(vm[at], layer[at], gfn[at], count[at], after[at]);
      }
      while (this.applied > goal) {
        const at = --this.applied;
        this._set(vm[at], layer[at], gfn[at], count[at], before[at]);
      }
    }

    _set(vm, layer, gfn, count, value) {
      const cells = this.cells[vm][layer];
      const end = gfn + count;
      while (gfn < end) {
        const key = Math.floor(gfn / NR);
        const upto = Math.min(end, (key + 1) * NR);
        if (upto - gfn === NR) {
          cells.set(key, value);
        } else {
          let cell = cells.get(key) ?? 0;
          if (typeof cell === "number")
            cells.set(key, (cell = new Uint32Array(NR).fill(cell)));
          cell.fill(value, gfn - key * NR, upto - key * NR);
        }
        gfn = upto;
      }
    }

    // A cell: a value, or 512 of them, which may be alike.
    cell(vm, layer, key) {
      return this.cells[vm][layer].get(key) ?? 0;
    }

    value(vm, layer, gfn) {
      const cell = this.cell(vm, layer, Math.floor(gfn / NR));
      return typeof cell === "number" ? cell : cell[gfn % NR];
    }

    // What a value says of a page, with its frame.
    text(value, gfn) {
      const [words, offset] = this.values[value];
      if (!words) return "—";
      return offset === null ? words : `${words}, pfn ${septum.words.hex(gfn + offset)}`;
    }

    // Changes of one step, as [from, to) in the columns.
    changesOf(step) {
      return [this._after(step - 1), this._after(step)];
    }

    // Where what is mapped changed last before a step of the run, else first after it, as
    // [VM, GFN]; null: nowhere.
    changedNear(step) {
      const c = this.changes;
      const fits = (at) => c.step[at] && c.layer[at] <= 1;
      let at = this._after(step) - 1;
      while (at >= 0 && !fits(at)) at--;
      if (at < 0) for (at = 0; at < c.nr && !fits(at); ) at++;
      return at < c.nr ? [c.vm[at], c.gfn[at]] : null;
    }

    // The nearest step after (or before) `step` that changes the page; -1: none.
    nextChange(vm, gfn, step, forward) {
      const c = this.changes;
      const covers = (at) => c.vm[at] === vm && c.gfn[at] <= gfn && gfn < c.gfn[at] + c.count[at];
      if (forward) {
        for (let at = this._after(step); at < c.nr; at++) if (covers(at)) return c.step[at] - 1;
      } else {
        for (let at = this._after(step - 1) - 1; at >= 0 && c.step[at]; at--)
          if (covers(at)) return c.step[at] - 1;
      }
      return -1;
    }

    // Every 2 MB that any layer of a VM ever has something in, or that a slot covers, in order.
    keys(vm) {
      const keys = new Set();
      for (const [first, pages] of vm.slots)
        for (let key = Math.floor(first / NR); key * NR < first + pages; key++) keys.add(key);
      const c = this.changes;
      for (let at = 0; at < c.nr; at++)
        if (c.vm[at] === vm.id)
          for (let key = Math.floor(c.gfn[at] / NR); key * NR < c.gfn[at] + c.count[at]; key++)
            keys.add(key);
      return [...keys].sort((a, b) => a - b);
    }
  }

  return { Memory, NR };
})();
