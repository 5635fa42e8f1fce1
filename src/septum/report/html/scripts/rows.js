// Which rows the ladder has: steps, folds of quiet steps, folds of rounds of alike steps.
"use strict";

septum.rows = (() => {
  const PERIOD_MAX = 32;
  const FOLD_FROM = 4;
  const MARKED_PREEMPTIONS_MAX = 60; // a schedule with more preempts as its way of going on
  const OPEN_AT_ONCE = 400;

  // A row is [start, end): one step, or a fold. `kind`: step, quiet, rounds.
  const row = (kind, start, end, note = "") => ({ kind, start, end, note });

  class Rows {
    constructor(run) {
      this.run = run;
      this.preemptions = run.forms.reduce((sum, form) =>
        sum + (form.mark === "preempted" ? form.rows : 0), 0);
      this.marksPreemptions = this.preemptions <= MARKED_PREEMPTIONS_MAX;
      this.hidden = run.forms.map((form) => form.quiet && !this.mark(form));
      this.all = this._folded();
    }

    // How a step of this form is marked: preempted, injected, broken or "".
    mark(form) {
      return form.mark === "preempted" && !this.marksPreemptions ? "" : form.mark;
    }

    _folded() {
      const { run, hidden } = this;
      const rows = [];
      const keys = [];
      const units = []; // rows before rounds are folded
      for (let at = 0; at < run.nr; ) {
        let end = at + 1;
        if (hidden[run.form[at]]) {
          while (end < run.nr && hidden[run.form[end]]) end++;
          units.push(row("quiet", at, end));
          keys.push(-1);
        } else {
          units.push(row("step", at, end));
          keys.push(run.form[at] * run.tasks.length + run.task[at]);
        }
        at = end;
      }
      this._rounds(units, Int32Array.from(keys), 0, units.length, PERIOD_MAX, rows);
      return rows;
    }

    // Rows of units [at, end): the first and the last round of what repeats, a fold between.
    _rounds(units, keys, at, end, periodMax, rows) {
      while (at < end) {
        const [period, rounds] = longestRepeat(keys, at, end, periodMax);
        if (rounds === 1) {
          rows.push(units[at++]);
          continue;
        }
        const after = at + rounds * period;
        this._rounds(units, keys, at, at + period, period - 1, rows);
        const what = period === 1 ? "like it" : `rounds of these ${period}`;
        const note = `${(rounds - 2).toLocaleString("en")} more ${what}`;
        rows.push(row("rounds", units[at + period].start, units[after - period - 1].end, note));
        this._rounds(units, keys, after - period, after, period - 1, rows);
        at = after;
      }
    }

    // The number of the row that has a step.
    rowOf(step) {
      let low = 0;
      let high = this.all.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (this.all[middle].start <= step) low = middle;
        else high = middle - 1;
      }
      return low;
    }

    // Open a fold around a step: that step and its neighbours are rows of their own.
    open(at, step) {
      const fold = this.all[at];
      if (fold.kind === "step") return;
      const first = Math.max(fold.start, step - OPEN_AT_ONCE / 2);
      const last = Math.min(fold.end, first + OPEN_AT_ONCE);
      const made = [];
      if (first > fold.start) made.push(row("quiet", fold.start, first));
      for (let each = first; each < last; each++) made.push(row("step", each, each + 1));
      if (last < fold.end) made.push(row("quiet", last, fold.end));
      this.all.splice(at, 1, ...made);
    }

    // The words of a fold.
    note(fold) {
      const steps = septum.words.count(fold.end - fold.start, fold.note ? "step" : "quiet step");
      return fold.note ? `${fold.note} (${steps})` : steps;
    }
  }

  // [period, rounds] of what repeats from `at` on and covers most; [1, 1]: nothing does.
  function longestRepeat(keys, at, end, periodMax) {
    let best = [1, 1];
    for (let period = 1; period <= periodMax; period++) {
      let upto = at + period;
      while (upto < end && keys[upto] === keys[upto - period]) upto++;
      const rounds = Math.floor((upto - at) / period);
      if (rounds >= FOLD_FROM && rounds * period > best[0] * best[1]) best = [period, rounds];
    }
    return best;
  }

  return { Rows };
})();
