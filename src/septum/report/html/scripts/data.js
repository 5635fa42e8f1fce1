// The run as the page carries it: compressed columns of numbers, and forms that hold the words.
"use strict";
const septum = {};

septum.data = (() => {
  const HEX = "\ue000";
  const DECIMAL = "\ue001";

  // Base64 of gzip -> bytes.
  async function unpack(text) {
    if (typeof DecompressionStream === "undefined")
      throw new Error("this browser cannot unpack the page's data; use one from 2023 or later");
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // 64-bit numbers, one byte plane after the other; bytes that never differ are in `rest`.
  class Column {
    constructor(bytes, rows, spec) {
      this.bytes = bytes;
      this.rows = rows;
      this.planes = [];
      this.rest = BigInt("0x" + (typeof spec === "string" ? spec : spec[2]));
      if (typeof spec === "string") return;
      let at = spec[0];
      for (let byte = 0; byte < 8; byte++) {
        if (!(spec[1] & (1 << byte))) continue;
        this.planes.push({ byte, at });
        at += rows;
      }
    }

    // The number of a row, as a BigInt.
    big(row) {
      let value = this.rest;
      for (const { byte, at } of this.planes)
        value |= BigInt(this.bytes[at + row]) << BigInt(8 * byte);
      return value;
    }

    // The same as a signed number.
    signed(row) {
      return BigInt.asIntN(64, this.big(row));
    }

    // All rows as numbers, which are exact below 2^53.
    numbers(make) {
      const values = new make(this.rows).fill(Number(BigInt.asIntN(64, this.rest)));
      for (const { byte, at } of this.planes) {
        const scale = 2 ** (8 * byte);
        for (let row = 0; row < this.rows; row++) values[row] += this.bytes[at + row] * scale;
      }
      return values;
    }
  }

  function columnsOf(bytes, rows, specs) {
    const columns = [];
    for (const spec of specs)
      columns.push(typeof spec === "number" ? columns[spec] : new Column(bytes, rows, spec));
    return columns;
  }

  class Form {
    constructor(raw, strings, bytes) {
      this.tag = strings[raw.tag];
      this.verb = strings[raw.verb];
      this.detail = strings[raw.detail];
      this.result = strings[raw.result];
      this.where = strings[raw.where];
      this.via = strings[raw.via] ? strings[raw.via].split(" < ") : [];
      this.quiet = raw.quiet;
      this.rows = raw.rows;
      this.mark = strings[raw.mark];
      this.texts = {};
      for (let at = 0; at < raw.texts.length; at += 2)
        this.texts[strings[raw.texts[at]]] = strings[raw.texts[at + 1]];
      this.names = raw.names.map((name) => strings[name]);
      this.columns = columnsOf(bytes, raw.rows, raw.columns);
      this.inText = this.columns.length - this.names.length;
    }

    // The words of a row's detail, with its numbers in it.
    fill(row) {
      let at = 0;
      return this.detail.replace(/[\ue000\ue001]/g, (mark) => {
        const value = this.columns[at++].big(row);
        return mark === HEX ? "0x" + value.toString(16) : value.toString();
      });
    }

    // A named number of a row; undefined when there is none of that name.
    field(name, row) {
      const at = this.names.indexOf(name);
      return at < 0 ? undefined : this.columns[this.inText + at].big(row);
    }
  }

  // Every step: `form[i]`, `row[i]` in the form's table, `task[i]`, `time[i]` in ns.
  class Run {
    constructor(bytes) {
      const length = new DataView(bytes.buffer).getUint32(0, true);
      const head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
      const body = bytes.subarray(4 + length);
      this.head = head;
      this.nr = head.steps.nr;
      this.tasks = head.tasks.map((number) => head.strings[number]);
      this.forms = head.forms.map((raw) => new Form(raw, head.strings, body));
      this.form = new Column(body, this.nr, head.steps.form).numbers(Uint32Array);
      this.task = new Column(body, this.nr, head.steps.task).numbers(Uint16Array);
      this._place(new Column(body, this.nr, head.steps.delta_ns).numbers(Float64Array));
      this.changes = this._changes(body);
    }

    _place(delta) {
      const nr = this.nr;
      this.row = new Uint32Array(nr);
      this.time = new Float64Array(nr);
      const seen = new Uint32Array(this.forms.length);
      const clock = new Float64Array(this.tasks.length);
      this.end = 0;
      for (let step = 0; step < nr; step++) {
        this.row[step] = seen[this.form[step]]++;
        const now = (clock[this.task[step]] += delta[step]);
        this.time[step] = now;
        if (now > this.end) this.end = now;
      }
      this.start = nr ? this.time[0] : 0;
    }

    _changes(body) {
      const nr = this.head.nr_changes;
      const columns = columnsOf(body, nr, this.head.changes);
      const makers = [Uint32Array, Uint32Array, Uint8Array, Float64Array, Uint32Array, Uint32Array,
        Uint32Array];
      const [step, vm, layer, gfn, count, before, after] = columns.map((column, at) =>
        column.numbers(makers[at]));
      return { nr, step, vm, layer, gfn, count, before, after };
    }

    // The form of a step, and its row there.
    formOf(step) {
      return this.forms[this.form[step]];
    }
  }

  async function load() {
    return new Run(await unpack(document.getElementById("run-data").textContent.trim()));
  }

  return { load };
})();
