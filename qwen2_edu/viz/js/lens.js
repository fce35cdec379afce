// The logit lens: what would come next if the stream were read off after each layer.

const WIDE = 64, HIGH = 19, NAMES = 70; // pixels of a cell, and of the names of layers
const AT_ONCE = 16; // tokens of a row that are asked for: the kernel does one thing at a time, and a click waits for it
const PAUSE = 300; // ms after each change in which the kernel is left to what the change asks for

/** All layers and tokens as a grid, of which what is in sight is painted; below it one token, its five likeliest. */
function makeLens(shared) {
  const { source, data, T, state, layers, chosenToken, chooseToken, name, hides } = shared;
  const told = h("p", { class: "qx-note" }, data.lensNote), places = data.lens.length;
  if (!places) return { draw: () => {}, paint: () => {}, element: h("div", { class: "qx-lens" }, told) };
  const canvas = h("canvas", { tabindex: 0, role: "application", "aria-roledescription": "grid of layers and tokens",
    onclick: (event) => under(event) && choose(under(event)), onmousemove: (event) => hover(under(event), event),
    onmouseleave: () => hover(null), onkeydown: press });
  const tip = h("div", { class: "qx-tip", "aria-hidden": true, hidden: true }), readout = h("output", { class: "qx-read" });
  const sheet = h("div", { style: `width: ${NAMES + T * WIDE}px; height: ${(places + 1) * HIGH}px` }, canvas);
  const box = shadowed(h("div", { class: "qx-grid", onscroll: () => paint() }, sheet));
  const title = h("h3", {}), chances = h("ol", { class: "qx-bars" });
  const element = h("div", { class: "qx-lens" }, told, h("div", { class: "qx-grids" }, box, tip), readout, title, chances);
  const rows = Array.from({ length: places }, () => Array(T)); // place in the stream, token -> the likeliest after it
  let place = places - 1, seen = null, followed = null, fives = null, shown = null, working = false, changed = 0;

  const layerOf = (at) => data.layers.find(({ index }) => data.lens[at] === `layer ${index}`);
  const under = ({ offsetX, offsetY }) => {
    const token = Math.floor((offsetX - NAMES + box.scrollLeft) / WIDE), at = Math.floor((offsetY + box.scrollTop) / HIGH) - 1;
    return offsetX >= NAMES && offsetY >= HIGH && token < T && at < places ? { token, at } : null;
  };

  /** A token, and the layer too, if its maps are here. */
  function choose({ token, at }) {
    place = at;
    const layer = layerOf(at);
    chooseToken(token, layer ? { layer: layer.index } : {});
    canvas.focus();
  }

  function press(event) {
    const token = chosenToken(), at = place;
    const to = { ArrowLeft: { token: token - 1 }, ArrowRight: { token: token + 1 }, Home: { token: 0 }, End: { token: T - 1 },
      ArrowUp: { at: at - 1 }, ArrowDown: { at: at + 1 } }[event.key];
    if (!to) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would move to another cell
    const next = { token, at, ...to };
    if (next.token >= 0 && next.token < T && next.at >= 0 && next.at < places) choose(next);
  }

  const padding = (token) => hides(token, token) === 3;
  function sentence({ token, at }) {
    const likeliest = rows[at][token];
    const after = `Read off after ${data.lens[at]}, token ${name(token)}: `;
    if (padding(token)) return `${after}it is padding`;
    return after + (likeliest ? `“${likeliest.text}” ${chance(likeliest.probability)}` : "not yet read");
  }

  /** Tell about the cell under the cursor, beside it; of none, about the chosen one. */
  function hover(one, event) {
    tip.hidden = !one;
    if (!one) return;
    tip.textContent = sentence(one);
    const right = event.offsetX > canvas.clientWidth / 2, low = event.offsetY > canvas.clientHeight / 2;
    const left = event.offsetX + (right ? -10 - tip.offsetWidth : 14);
    tip.style.translate = `${Math.max(0, Math.min(left, canvas.clientWidth - tip.offsetWidth))}px ${event.offsetY + (low ? -8 - tip.offsetHeight : 16)}px`;
  }

  const fits = new Map(); // text -> as much of it as a cell holds
  function fit(pen, text) {
    if (!fits.has(text)) {
      let length = Array.from(text).length;
      while (length > 1 && pen.measureText(clip(text, length)).width > WIDE - 8) length--;
      fits.set(text, clip(text, length));
    }
    return fits.get(text);
  }

  function paint() {
    const width = box.clientWidth, height = Math.min(box.clientHeight, sheet.clientHeight);
    if (element.hidden || !width || !layers.has(state.layer)) return;
    const ratio = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    Object.assign(canvas, { width: width * ratio, height: height * ratio });
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    const { color: ink, backgroundColor: paper, caretColor: hue } = getComputedStyle(canvas);
    pen.scale(ratio, ratio);
    Object.assign(pen, { textBaseline: "middle", font: "11px system-ui, sans-serif" });
    const x = (token) => NAMES + token * WIDE - box.scrollLeft, y = (at) => HIGH * (at + 1) - box.scrollTop;
    const inSight = (size, scrolled, seen, most) => Array.from({ length: Math.min(most, Math.ceil((scrolled + seen) / size)) }, (_, i) => i)
      .slice(Math.floor(scrolled / size));
    const tokens = inSight(WIDE, box.scrollLeft, width - NAMES, T), lines = inSight(HIGH, box.scrollTop, height - HIGH, places);
    const fill = (colour, alpha, ...where) => (Object.assign(pen, { fillStyle: colour, globalAlpha: alpha }), pen.fillRect(...where), pen.globalAlpha = 1);
    const write = (text, left, top, bold) => {
      Object.assign(pen, { fillStyle: ink, font: `${bold ? "600 " : ""}11px system-ui, sans-serif` });
      pen.fillText(text, left + 4, top + HIGH / 2);
    };
    fill(paper, 1, 0, 0, width, height);
    for (const at of lines) {
      for (const token of tokens) {
        const likeliest = padding(token) ? null : rows[at][token], left = x(token), top = y(at);
        fill(ink, 0.05, left, top, WIDE - 2, HIGH - 2);
        if (!likeliest) continue;
        fill(hue, 0.75 * likeliest.probability, left, top, WIDE - 2, HIGH - 2);
        const text = fit(pen, likeliest.text);
        write(text, left, top - 1);
        if (likeliest.id === data.tokens[token + 1]?.id) fill(ink, 1, left + 4, top + HIGH - 5, pen.measureText(text).width, 1);
      }
    }
    Object.assign(pen, { strokeStyle: ink, lineWidth: 2 });
    pen.strokeRect(x(chosenToken()) - 1, y(place) - 1, WIDE, HIGH);
    fill(paper, 1, 0, 0, width, HIGH);
    for (const token of tokens) write(fit(pen, data.tokens[token].text), x(token), 0, token === chosenToken());
    fill(paper, 1, 0, 0, NAMES, height);
    for (const at of lines) write(data.lens[at], -4, y(at) - 1, at === place);
    fill(paper, 1, 0, 0, NAMES, HIGH);
    write("after", -4, 0);
  }

  /** Scroll the box, and not the page, to the chosen cell. */
  function follow(token) {
    const into = (scrolled, start, size, seen) => Math.max(start + size - seen, Math.min(scrolled, start));
    box.scrollLeft = into(box.scrollLeft, token * WIDE, WIDE, box.clientWidth - NAMES);
    if (followed === null) box.scrollTop = sheet.clientHeight; // at first the last layers, where the answer appears
    else if (followed !== place) box.scrollTop = into(box.scrollTop, place * HIGH, HIGH, box.clientHeight - HIGH);
    followed = place;
  }

  /** What of the grid to ask for next: what is in sight first, and of it the answer; nothing is left: undefined. */
  function missing() {
    const size = source.whole ? T : AT_ONCE, pieces = Array.from({ length: Math.ceil(T / size) }, (_, i) => i * size);
    const [left, right] = [box.scrollLeft, box.scrollLeft + box.clientWidth - NAMES].map((x) => x / WIDE);
    const inSight = (from) => from < right && from + size > left;
    for (const some of [pieces.filter(inSight), pieces]) {
      for (let at = places - 1; at >= 0; at--) for (const from of some) if (!rows[at][from]) return { at, from, to: Math.min(T, from + size) };
    }
  }

  /** Ask for one thing after another: others that look elsewhere meanwhile wait for no more than that. */
  async function work() {
    if (working) return;
    working = true;
    try {
      while (!element.hidden && element.isConnected) {
        const rest = changed + PAUSE - performance.now(), token = chosenToken();
        const next = shown === token ? missing() : null;
        if (!source.whole && rest > 0) await new Promise((done) => setTimeout(done, rest));
        else if (next === null) await list(token);
        else if (!next) break;
        else {
          const { at, from, to } = next;
          (await source.load(`grid ${at} ${from} ${to}`)).forEach((likeliest, i) => (rows[at][from + i] = likeliest));
          paint();
          if (at === place) tell();
        }
      }
    } catch (error) {
      readout.textContent = error.message;
    }
    working = false;
  }

  function tell() {
    const now = { token: chosenToken(), at: place };
    readout.textContent = sentence(now);
    canvas.setAttribute("aria-label", `Likeliest next token for ${places} places in the stream, ${T} tokens. ${sentence(now)}`);
  }

  function draw() {
    if (element.hidden || !layers.has(state.layer)) return;
    const token = chosenToken();
    if (seen !== state.layer) { // it may have been chosen elsewhere
      seen = state.layer;
      place = Math.max(data.lens.indexOf(`layer ${seen}`), 0) || place;
    }
    changed = performance.now();
    follow(token), paint(), tell(), rank(), work();
  }

  /** The five likeliest after a token, read off at each place; those of the chosen place are shown. */
  async function list(token) {
    const loaded = await source.load(`lens ${token}`);
    if (chosenToken() !== token) return; // another was chosen meanwhile
    [fives, shown] = [loaded, token];
    rank();
  }

  function rank() {
    if (shown !== chosenToken()) return;
    const next = data.tokens[shown + 1]?.id;
    told.textContent = "The likeliest next token if the stream were read off after a layer, coloured by its probability."
      + (next === undefined ? "" : " The token that does come is underlined.") + (data.lensNote && ` ${data.lensNote}`);
    title.textContent = `Likeliest after token ${name(shown)}, read off after ${data.lens[place]}`;
    chances.replaceChildren(...fives[place].map(({ text, id, probability }) => bar(`“${text}”`, probability, chance(probability), id === next)));
  }
  return { draw, paint, element };
}
