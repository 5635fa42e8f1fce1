// The guest's memory as a map: a cell for each 2 MB, which opens into its 512 pages.
"use strict";

septum.map = (() => {
  const NR = 512;
  const PAGES_PER_ROW = 32;
  const BESIDE_FROM = 480; // pixels from which the page's state is beside the pages
  const BESIDE = 192;
  // What a state is drawn with: colour (a variable of the style) and letter.
  const KINDS = [
    [/^$/, "none", "·"],
    [/^(PENDING_)?BLOCKED/, "blocked", "b"],
    [/^PENDING/, "pending", "p"],
    [/NDA, pair/, "pair", "°"],
    [/^NDA/, "free", "n"],
    [/pair$/, "pages", "+"],
    [/split folio/, "split", "/"],
    [/1G/, "giga", "G"],
    [/2M/, "huge", "2"],
    [/4K/, "pages", "4"],
    [/^private/, "huge", "p"],
    [/^shared/, "shared", "s"],
  ];

  const kindOf = (words) => KINDS.find(([pattern]) => pattern.test(words)) ?? KINDS[0];

  class Map2M {
    constructor(root, run, memory, onPage) {
      this.run = run;
      this.memory = memory;
      this.onPage = onPage;
      this.cells = root.querySelector(".map-cells");
      this.pages = root.querySelector(".map-pages");
      this.title = root.querySelector(".map-title");
      this.legend = d3.select(root.querySelector(".legend"));
      this.page = d3.select(root.querySelector(".page-state"));
      this.layer = 0;
      this.step = 0;
      this.kinds = memory.values.map(([words]) => kindOf(words));
      this.setVm(run.head.vms[0]);
      this.cells.addEventListener("click", (event) => this._clickedCell(event));
      this.pages.addEventListener("click", (event) => this.setPage(this._pageUnder(event)));
      this.cells.addEventListener("mousemove", (event) => this._tip(event));
      this.pages.addEventListener("mousemove", (event) => this._tip(event));
      this.cells.addEventListener("keydown", (event) => this._key(event, NR, this.perRow));
      this.pages.addEventListener("keydown", (event) => this._key(event, 1, PAGES_PER_ROW));
      new ResizeObserver(() => this.draw()).observe(this.cells.parentElement);
    }

    setVm(vm) {
      this.vm = vm;
      this.keys = vm ? this.memory.keys(vm) : [];
      const first = vm?.slots[0]?.[0] ?? (this.keys[0] ?? 0) * NR;
      this.gfn = first;
    }

    setLayer(layer) {
      this.layer = layer;
      this.draw();
    }

    setPage(gfn) {
      this.gfn = gfn;
      this.onPage(gfn);
      this.draw();
    }

    // Begin at a page, [VM, GFN] or null.
    lookAt(found) {
      const vm = found && this.run.head.vms.find((each) => each.id === found[0]);
      if (!vm) return;
      if (vm !== this.vm) this.setVm(vm);
      this.setPage(found[1]);
    }

    // Follow the run to a step.
    goto(step) {
      this.step = step;
      this.draw();
    }

    get key() {
      return Math.floor(this.gfn / NR);
    }

    // 2 MB and pages that the step changes in the layer that is shown.
    _changed() {
      const c = this.memory.changes;
      const keys = new Set();
      const pages = new Set();
      const [from, to] = this.memory.changesOf(this.step);
      for (let at = from; at < to; at++) {
        if (c.vm[at] !== this.vm.id || c.layer[at] !== this.layer) continue;
        const end = c.gfn[at] + c.count[at];
        for (let key = Math.floor(c.gfn[at] / NR); key * NR < end; key++) keys.add(key);
        const low = Math.max(c.gfn[at], this.key * NR);
        for (let gfn = low; gfn < Math.min(end, (this.key + 1) * NR); gfn++) pages.add(gfn);
      }
      return { keys, pages };
    }

    draw() {
      if (!this.vm) return;
      const width = this.cells.parentElement.clientWidth;
      if (!width) return;
      const changed = this._changed();
      const style = getComputedStyle(document.documentElement);
      this.colours = (name) => style.getPropertyValue(`--map-${name}`).trim();
      this.ink = style.getPropertyValue("--map-ink").trim();
      this._drawCells(width, changed.keys);
      this._drawPages(width, changed.pages);
      this._drawLegend();
      this._drawPage();
    }

    _canvas(canvas, columns, rows, pitch) {
      const ratio = window.devicePixelRatio || 1;
      canvas.width = columns * pitch * ratio;
      canvas.height = rows * pitch * ratio;
      canvas.style.width = `${columns * pitch}px`;
      canvas.style.height = `${rows * pitch}px`;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      context.textAlign = "center";
      context.textBaseline = "middle";
      return context;
    }

    _drawCells(width, changed) {
      const nr = this.keys.length;
      const fit = [30, 24, 18, 14, 11, 9, 7, 5].find((pitch) =>
        Math.ceil(nr / Math.floor(width / pitch)) * pitch <= 260) ?? 4;
      this.pitch = fit;
      const most = Math.floor(width / fit);
      this.perRow = nr <= most ? nr : most >= 16 ? most - (most % 16) : most;
      this._place();
      const context = this._canvas(this.cells, this.perRow, this.nrRows, fit);
      this.keys.forEach((key, at) => {
        const x = (this.places[at] % this.perRow) * fit;
        const y = Math.floor(this.places[at] / this.perRow) * fit;
        this._drawCell(context, x, y, fit, this.memory.cell(this.vm.id, this.layer, key));
        this._outline(context, x, y, fit, changed.has(key), key === this.key);
      });
      this.cells.setAttribute("aria-label", `memory of VM ${this.vm.id} in ${nr} cells of 2 MB; `
        + `selected: ${this._cellText(this.key)}`);
    }

    // Where each cell is: row after row. In a map of several rows, what is not next to the cell
    // before begins a new row.
    _place() {
      let place = -1;
      this.places = this.keys.map((key, at) => {
        const apart = at > 0 && this.keys[at - 1] !== key - 1 && this.keys.length > this.perRow;
        place = apart ? (Math.floor(place / this.perRow) + 1) * this.perRow : place + 1;
        return place;
      });
      this.nrRows = Math.floor(place / this.perRow) + 1;
      this.keyAt = new Map(this.places.map((where, at) => [where, this.keys[at]]));
    }

    _drawPages(width, changed) {
      const room = width >= BESIDE_FROM ? width - BESIDE : width;
      const pitch = Math.max(8, Math.min(11, Math.floor(room / PAGES_PER_ROW)));
      this.pagePitch = pitch;
      const context = this._canvas(this.pages, PAGES_PER_ROW, NR / PAGES_PER_ROW, pitch);
      const cell = this.memory.cell(this.vm.id, this.layer, this.key);
      for (let at = 0; at < NR; at++) {
        const x = (at % PAGES_PER_ROW) * pitch;
        const y = Math.floor(at / PAGES_PER_ROW) * pitch;
        const gfn = this.key * NR + at;
        this._drawCell(context, x, y, pitch, typeof cell === "number" ? cell : cell[at]);
        this._outline(context, x, y, pitch, changed.has(gfn), gfn === this.gfn);
      }
      const first = this.key * NR;
      this.title.textContent = `gfn ${septum.words.hex(first)} to ${septum.words.hex(first + 511)}`
        + ` (GPA ${septum.words.hex(first * 4096)}), 512 pages`;
      this.pages.setAttribute("aria-label", `${this.title.textContent}; selected: gfn `
        + `${septum.words.hex(this.gfn)} ${this.memory.text(this._value(this.layer), this.gfn)}`);
    }

    // A square of one kind, or of several in proportion.
    _drawCell(context, x, y, pitch, cell) {
      const size = pitch - 1;
      if (typeof cell === "number") {
        const [, name, letter] = this.kinds[cell];
        context.fillStyle = this.colours(name);
        context.fillRect(x, y, size, size);
        if (pitch >= 9) this._letter(context, x, y, pitch, letter, name);
        return;
      }
      const counts = new Map();
      for (const value of cell) {
        const name = this.kinds[value][1];
        counts.set(name, (counts.get(name) ?? 0) + 1);
      }
      let at = y;
      const least = Math.max(1.5, size / 8);
      const total = [...counts.values()].reduce((sum, nr) => sum + Math.max(least, nr / NR * size), 0);
      for (const [name, nr] of counts) {
        const height = Math.max(least, (nr / NR) * size) * (size / total);
        context.fillStyle = this.colours(name);
        context.fillRect(x, at, size, height);
        at += height;
      }
      if (pitch >= 9 && counts.size > 1) this._letter(context, x, y, pitch, "m", "none");
      else if (pitch >= 9) this._letter(context, x, y, pitch, this.kinds[cell[0]][2],
        this.kinds[cell[0]][1]);
    }

    _letter(context, x, y, pitch, letter, name) {
      context.font = `${Math.min(13, Math.round(pitch * 0.62))}px ui-monospace, monospace`;
      context.fillStyle = this.colours(`${name}-ink`) || this.ink;
      context.fillText(letter, x + (pitch - 1) / 2, y + pitch / 2);
    }

    _outline(context, x, y, pitch, changed, selected) {
      if (changed) {
        context.fillStyle = this.ink;
        context.beginPath();
        context.moveTo(x, y);
        context.lineTo(x + pitch * 0.55, y);
        context.lineTo(x, y + pitch * 0.55);
        context.fill();
      }
      if (selected) {
        context.strokeStyle = this.ink;
        context.lineWidth = 2;
        context.strokeRect(x, y, pitch - 1, pitch - 1);
      }
    }

    _value(layer, gfn = this.gfn) {
      return this.memory.value(this.vm.id, layer, gfn);
    }

    _cellText(key) {
      const cell = this.memory.cell(this.vm.id, this.layer, key);
      if (typeof cell === "number") return this.memory.text(cell, key * NR);
      const words = new Set([...cell].map((value) => this.memory.values[value][0] || "none"));
      return [...words].join(" and ");
    }

    // Pages of each state in the layer, in the whole VM.
    counts() {
      const counts = new Map();
      const add = (value, nr) => {
        const words = this.memory.values[value][0];
        counts.set(words, (counts.get(words) ?? 0) + nr);
      };
      for (const key of this.keys) {
        const cell = this.memory.cell(this.vm.id, this.layer, key);
        if (typeof cell === "number") add(cell, NR);
        else for (const value of cell) add(value, 1);
      }
      return counts;
    }

    _drawLegend() {
      const rows = [...this.counts()].filter(([words]) => words).sort();
      const item = this.legend.selectAll("li").data(rows, ([words]) => words).join((enter) => {
        const li = enter.append("li");
        li.append("span").attr("class", "swatch").attr("aria-hidden", "true");
        li.append("span").attr("class", "what");
        return li;
      });
      item.select(".swatch").text(([words]) => kindOf(words)[2])
        .style("background", ([words]) => `var(--map-${kindOf(words)[1]})`)
        .style("color", ([words]) => `var(--map-${kindOf(words)[1]}-ink, var(--map-ink))`);
      item.select(".what").text(([words, pages]) => `${words}: ${septum.words.size(pages)}`);
    }

    // The selected page in every layer.
    _drawPage() {
      const rows = this.memory.layers.map((name, layer) =>
        [name, this.memory.text(this._value(layer), this.gfn)]);
      this.page.select("caption").text(`page gfn ${septum.words.hex(this.gfn)}`
        + ` (GPA ${septum.words.hex(this.gfn * 4096)})`);
      const row = this.page.select("tbody").selectAll("tr").data(rows).join((enter) => {
        const tr = enter.append("tr");
        tr.append("th").attr("scope", "row");
        tr.append("td");
        return tr;
      });
      row.select("th").text(([name]) => name);
      row.select("td").text(([, text]) => text);
    }

    // The 2 MB under the pointer; undefined between banks.
    _cellUnder(event) {
      return this.keyAt?.get(Math.floor(event.offsetX / this.pitch)
        + Math.floor(event.offsetY / this.pitch) * this.perRow);
    }

    // The page under the pointer.
    _pageUnder(event) {
      const x = Math.min(PAGES_PER_ROW - 1, Math.floor(event.offsetX / this.pagePitch));
      const y = Math.min(NR / PAGES_PER_ROW - 1, Math.floor(event.offsetY / this.pagePitch));
      return this.key * NR + x + y * PAGES_PER_ROW;
    }

    _clickedCell(event) {
      const key = this._cellUnder(event);
      if (key !== undefined) this.setPage(key * NR);
    }

    _tip(event) {
      const { hex } = septum.words;
      if (event.target === this.pages) {
        const gfn = this._pageUnder(event);
        this.pages.title = `gfn ${hex(gfn)}: ${this.memory.text(this._value(this.layer, gfn), gfn)}`;
        return;
      }
      const key = this._cellUnder(event);
      this.cells.title = key === undefined ? ""
        : `gfn ${hex(key * NR)} (GPA ${hex(key * NR * 4096)}): ${this._cellText(key)}`;
    }

    // Arrow keys in a map: by cells or by pages.
    _key(event, unit, perRow) {
      const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow }[event.key];
      if (!move) return;
      event.preventDefault();
      event.stopPropagation();
      if (unit === 1) {
        const at = (this.gfn % NR) + move;
        if (at >= 0 && at < NR) this.setPage(this.gfn + move);
      } else {
        const key = this.keys[this.keys.indexOf(this.key) + move];
        if (key !== undefined) this.setPage(key * NR);
      }
    }
  }

  return { Map2M, kindOf };
})();
