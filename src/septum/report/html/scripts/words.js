// Numbers and states in words; nothing here knows the page.
"use strict";

septum.words = (() => {
  const LEVELS = ["4K", "2M", "1G", "512G", "256T"];
  const UNITS = [[1 << 18, "GiB"], [1 << 8, "MiB"]];

  const hex = (value) => "0x" + value.toString(16);
  const count = (nr, noun) => `${nr.toLocaleString("en")} ${noun}${nr === 1 ? "" : "s"}`;

  // Virtual time, as a person reads it.
  function clock(ns) {
    if (ns < 1e4) return `${ns} ns`;
    if (ns < 1e7) return `${(ns / 1e3).toFixed(1)} µs`;
    if (ns < 1e10) return `${(ns / 1e6).toFixed(2)} ms`;
    return `${(ns / 1e9).toFixed(3)} s`;
  }

  // 4 KB pages as a size.
  function size(pages) {
    for (const [each, unit] of UNITS)
      if (pages >= each && pages % each === 0) return `${pages / each} ${unit}`;
    return `${pages * 4} KiB`;
  }

  // A step in one line.
  function step(run, at) {
    const form = run.formOf(at);
    const text = `${form.verb} ${form.fill(run.row[at])}`.trim();
    return (form.result ? `${text} → ${form.result}` : text).replaceAll("->", "→");
  }

  // A GPA operand of the TDX module: page, then the level in its lowest bits.
  function gpaLevel(value) {
    const level = Number(value & 7n);
    return `${hex(value & ~0xfffn)}, ${LEVELS[level] ?? "level " + level}`;
  }

  // What a register of the module means, when its parameter's name says how to read it.
  function operand(name, value) {
    if (name === "GPA and level" || name.startsWith("HPA and level")) return gpaLevel(value);
    if (name.includes("bit 62"))
      return hex(value & ~(1n << 62n)) + (value >> 62n & 1n ? ", PAMT may be removed" : "");
    if (name === "page size") return LEVELS[Number(value)] ?? hex(value);
    if (name === "level and state")
      return `${LEVELS[Number(value & 7n)] ?? "?"}, state ${hex(value >> 8n & 0xffn)}`;
    if (name.startsWith("HPA") || name.startsWith("TDR") || name === "TDVPR")
      return `PFN ${hex((value & 0xffffffffff000n) >> 12n)}`;
    return "";
  }

  return { LEVELS, hex, count, clock, size, step, operand };
})();
