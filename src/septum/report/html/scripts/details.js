// What is known of one step: where it came from, registers, what it changed, who holds what.
"use strict";

septum.details = (() => {
  const REGISTERS = ["rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13"];
  const TEXTS_SHOWN_ELSEWHERE = new Set(["leaf", "version", "name", "status", "rax", "sept_state",
    "sept_child_state"]);
  const SIGNED = new Set(["errno", "ret", "order"]);
  const GPA_LEAVES_PATTERN = /^TDH\.MEM\.(PAGE|SEPT|RANGE)\./;
  const CHANGES_MAX = 60;
  const BUSY_LOOK_MAX = 5000; // steps
  const { hex } = septum.words;

  class Details {
    constructor(root, run, rows, memory, locks, onStep) {
      this.root = d3.select(root);
      this.run = run;
      this.rows = rows;
      this.memory = memory;
      this.locks = locks;
      this.onStep = onStep;
    }

    show(step) {
      const { run, root } = this;
      const form = run.formOf(step);
      root.selectAll("*").remove();
      const mark = this.rows.mark(form);
      root.append("h2").text(`Step ${step}: ${form.verb}`);
      root.append("p").attr("class", "step-text").text(septum.words.step(run, step));
      root.append("p").attr("class", "dim")
        .text(`${run.tasks[run.task[step]]} at ${septum.words.clock(run.time[step])}`
          + (mark ? `; ${mark}` : ""));
      this._path(form);
      if (form.tag === "seamcall") this._seamcall(form, run.row[step]);
      else this._fields(form, run.row[step]);
      if (/OPERAND_BUSY/.test(form.texts.status)) this._busy(step);
      this._changes(step);
      this._held(step, form);
    }

    _section(title) {
      const section = this.root.append("section");
      section.append("h3").text(title);
      return section;
    }

    _table(section, head, rows) {
      const table = section.append("div").attr("class", "scroll").append("table");
      if (head) table.append("thead").append("tr").selectAll("th").data(head).join("th")
        .attr("scope", "col").text((text) => text);
      const tr = table.append("tbody").selectAll("tr").data(rows).join("tr");
      tr.each(function (cells) {
        d3.select(this).selectAll("td").data(cells).join(
          (enter) => enter.append((_, at) => document.createElement(at ? "td" : "th")))
          .text((text) => text);
      });
      return table;
    }

    // The kernel functions, innermost first, with their patches and where they are here.
    _path(form) {
      const names = form.via.length ? form.via : form.where ? [form.where] : [];
      if (!names.length) return;
      const section = this._section("Kernel path, innermost first");
      const item = section.append("ol").attr("class", "path").selectAll("li").data(names).join("li");
      item.append("code").text((name) => name);
      const known = (name) => this.run.head.functions[name]?.places[0];
      const patch = (name) => this.run.head.functions[name]?.patch;
      item.filter(patch).append("span").attr("class", "patch").text(patch);
      item.filter((name) => known(name)).append("span").attr("class", "dim")
        .text((name) => known(name).place);
      item.filter((name) => known(name)?.text).append("span").attr("class", "doc")
        .text((name) => known(name).text);
    }

    _seamcall(form, row) {
      const { leaf, name, version, status, rax } = form.texts;
      const section = this._section(`SEAMCALL ${name}`);
      section.append("p").append("b").text(`RAX ${rax}: ${status}`);
      const inputs = this.run.head.inputs[leaf] ?? {};
      const outputs = rax === "0x0" ? this.run.head.outputs[leaf] ?? {}
        : GPA_LEAVES_PATTERN.test(name) ? this.run.head.refused : {};
      const rows = [["rax", hex(BigInt(leaf) | BigInt(version) << 16n), rax,
        `leaf ${leaf}${version === "0" ? "" : ", version " + version}; status ${status}`]];
      for (const register of REGISTERS) {
        const before = form.field(register, row) ?? 0n;
        const after = form.field(`out_${register}`, row) ?? 0n;
        if (!before && !after && !inputs[register]) continue;
        rows.push([register, hex(before), after === before ? "same" : hex(after),
          this._meaning(inputs[register], outputs[register], before, after)]);
      }
      this._table(section, ["register", "in", "out", "what it is"], rows)
        .attr("class", "registers");
      for (const [field, words] of [["sept", "S-EPT entry after the call"],
        ["sept_child", "first entry of the new table"]]) {
        const entry = form.field(field, row);
        if (entry !== undefined)
          section.append("p").text(`${words}: ${hex(entry)} (${form.texts[field + "_state"]})`);
      }
    }

    // Who was inside the module: the call of another task that ends next.
    _busy(step) {
      const { run } = this;
      const last = Math.min(run.nr, step + BUSY_LOOK_MAX);
      for (let at = step + 1; at < last; at++) {
        const form = run.formOf(at);
        if (!["seamcall", "tdcall"].includes(form.tag) || run.task[at] === run.task[step]) continue;
        const line = this._section("Why it is busy").append("p");
        line.append("span").text(`${run.tasks[run.task[at]]} is inside ${form.verb}, which ends at `);
        line.append("a").attr("href", `#step=${at}`).text(`step ${at}`);
        return;
      }
    }

    _meaning(input, output, before, after) {
      const parts = [];
      if (input) parts.push([input, septum.words.operand(input, before)].filter(Boolean).join(": "));
      if (output && after !== before)
        parts.push("out: " + [output, septum.words.operand(output, after)].filter(Boolean).join(": "));
      return parts.join("; ");
    }

    _fields(form, row) {
      const rows = Object.entries(form.texts)
        .filter(([name]) => form.tag === "tdcall" || !TEXTS_SHOWN_ELSEWHERE.has(name));
      form.names.forEach((name, at) => {
        const column = form.columns[form.inText + at];
        rows.push([name, SIGNED.has(name) ? column.signed(row).toString() : hex(column.big(row))]);
      });
      if (rows.length) this._table(this._section(`Event ${form.tag}`), null, rows);
    }

    // Old -> new of every layer that the step changed.
    _changes(step) {
      const c = this.memory.changes;
      const [from, to] = this.memory.changesOf(step);
      const section = this._section("What changed");
      if (from === to) {
        section.append("p").attr("class", "dim").text("nothing in the guests' memory");
        return;
      }
      const rows = [];
      const several = this.run.head.vms.length > 1;
      for (let at = from; at < Math.min(to, from + CHANGES_MAX); at++) {
        const where = `${several ? `VM ${c.vm[at]} ` : ""}gfn ${hex(c.gfn[at])}`
          + (c.count[at] > 1 ? ` + ${septum.words.size(c.count[at])}` : "");
        rows.push([this.memory.layers[c.layer[at]], where,
          `${this.memory.text(c.before[at], c.gfn[at])} → `
            + this.memory.text(c.after[at], c.gfn[at])]);
      }
      this._table(section, ["layer", "where", "old → new"], rows).attr("class", "changes");
      if (to - from > CHANGES_MAX)
        section.append("p").attr("class", "dim").text(`and ${to - from - CHANGES_MAX} more`);
    }

    _held(step, form) {
      const held = this.locks.at(step);
      if (form.tag === "lock" && form.texts.op === "wait") {
        const owners = held.filter((h) => h.lock === form.texts.lock);
        const section = this._section("Why it waits");
        for (const owner of owners) this._since(section.append("p"), owner, "held by ");
        if (!owners.length) section.append("p").text("the lock is held since before the trace");
      }
      if (!held.length) return;
      const item = this._section("Locks held after this step").append("ul").attr("class", "held")
        .selectAll("li").data(held).join("li");
      const details = this;
      item.each(function (owner) {
        d3.select(this).append("span")
          .attr("class", `swatch lock-${details.locks.number(owner.lock) % 6}`)
          .classed("shared", owner.shared).text(details.locks.letter(owner.lock));
        d3.select(this).append("span").text(` ${owner.lock}${owner.shared ? " (shared)" : ""}: `);
        details._since(d3.select(this), owner, "");
      });
    }

    _since(parent, owner, before) {
      parent.append("span").text(`${before}${this.run.tasks[owner.task]} since `);
      parent.append("a").attr("href", `#step=${owner.start}`).text(`step ${owner.start}`);
    }
  }

  return { Details };
})();
