// Which locks are held when: intervals of steps, and who waits for whom.
"use strict";

septum.locks = (() => {
  const BLOCK = 4096;

  class Locks {
    constructor(run) {
      this.run = run;
      this.names = []; // in order of first use; a lock's letter is its place here
      this.held = []; // {lock, shared, task, start, end}: steps from taking to release
      this.openAt = []; // of every block of steps, what is held when it begins
      this._letters = new Map();
      this._collect();
    }

    _collect() {
      const { run } = this;
      const open = new Map();
      for (let step = 0; step < run.nr; step++) {
        if (step % BLOCK === 0) this.openAt.push([...open.values()].flat());
        const form = run.formOf(step);
        if (form.tag !== "lock") continue;
        const { op, lock, mode } = form.texts;
        const key = `${run.task[step]} ${lock} ${mode}`;
        if (op === "lock") {
          const held = { lock, shared: mode === "sh", task: run.task[step], start: step,
            end: run.nr };
          this.held.push(held);
          open.set(key, [...(open.get(key) ?? []), held]);
          if (!this._letters.has(lock)) {
            this._letters.set(lock, this.names.length);
            this.names.push(lock);
          }
        } else if (op === "unlock") {
          const stack = open.get(key);
          if (!stack) continue;
          stack.pop().end = step;
          if (!stack.length) open.delete(key);
        }
      }
    }

    // A letter for a lock: A, B, ... Z, then a number.
    letter(lock) {
      const at = this._letters.get(lock) ?? 0;
      return at < 26 ? String.fromCharCode(65 + at) : String(at + 1);
    }

    number(lock) {
      return this._letters.get(lock) ?? 0;
    }

    // Intervals that overlap the steps [first, end).
    between(first, end) {
      const found = (this.openAt[Math.floor(first / BLOCK)] ?? []).filter((h) => h.end >= first);
      const blockStart = Math.floor(first / BLOCK) * BLOCK;
      for (let at = this._firstFrom(blockStart); at < this.held.length; at++) {
        const held = this.held[at];
        if (held.start >= end) break;
        if (held.end >= first) found.push(held);
      }
      return found;
    }

    _firstFrom(step) {
      let low = 0;
      let high = this.held.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.held[middle].start < step) low = middle + 1;
        else high = middle;
      }
      return low;
    }

    // What is held after a step, by everybody.
    at(step) {
      return this.between(step, step + 1).filter((h) => h.start <= step && h.end > step);
    }
  }

  return { Locks };
})();
