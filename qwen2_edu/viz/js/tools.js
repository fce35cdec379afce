// Small tools: elements, lists that arrow keys walk over, numbers as text, colours.

/** An element: h("p", { class: "note", onclick: act }, "text", child). */
function h(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const button = (text, label, act) => h("button", { type: "button", "aria-label": label, onclick: act }, text);
const select = (label, options, act) => {
  const made = h("select", { "aria-label": label, onchange: () => act(made.value) },
    ...options.map(([value, text]) => h("option", { value }, text)));
  return made;
};
const slider = (label, most, act) => {
  const made = h("input", { type: "range", min: 0, max: most, "aria-label": label, oninput: () => act(Number(made.value)) });
  return made;
};

const unique = () => `qx-${Math.random().toString(36).slice(2)}`; // pages hold several explorers

const nameOf = ({ layer, head }) => `${layer}.${head}`;
const headNamed = (name) => {
  const [layer, head] = name.split(".").map(Number);
  return { layer, head };
};

const weightOf = (byte) => (byte / 255) ** 2;
const digits = (w) => (w === 0 ? "0" : w < 0.0005 ? "<0.001" : w.toFixed(w < 0.1 ? 3 : 2));
const signed = (gap) => (gap > 0 ? "+" : gap < 0 ? "−" : "") + digits(Math.abs(gap));
/** A probability; Python rounds it to five digits, and none is 0 or 1. Near 1 as many digits as the distance needs. */
const chance = (p) => (p <= 0.99 ? digits(Math.max(p, 1e-9)) : p === 1 ? ">0.9999" : p.toFixed(Math.min(5, Math.ceil(-Math.log10(1 - p) - 1e-9))));
const clip = (text, length) => {
  const chars = Array.from(text);
  return chars.length > length ? chars.slice(0, length - 1).join("") + "…" : text;
};

const optionsOf = (list) => [...list.querySelectorAll("[role=option]")];

/** Arrow keys walk over the options of a listbox, of which one at a time can be tabbed to. beyond(option,
 * step): the one above or below, where that is known; else the nearest is looked for. */
function walkable(list, choose, backwards = false, beyond = () => undefined, all = () => optionsOf(list)) {
  list.addEventListener("keydown", (event) => {
    const options = all();
    const here = event.target.closest("[role=option]");
    const at = options.indexOf(here);
    let next = null;
    if (event.key === "Home") next = options[0];
    else if (event.key === "End") next = options.at(-1);
    else if (event.key === "Enter" || event.key === " ") next = here;
    else if (event.key === "ArrowLeft") next = options[at + (backwards ? 1 : -1)];
    else if (event.key === "ArrowRight") next = options[at + (backwards ? -1 : 1)];
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      next = beyond(here, event.key === "ArrowUp" ? -1 : 1);
      if (next === undefined) next = neighbour(options, here, event.key);
    }
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would move to another cell
    if (next) choose(next), next.focus();
  });
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose(option, event), option.focus();
  });
}

/** The option nearest to the one above or below. */
function neighbour(options, from, key) {
  const middle = (box) => [box.left + box.width / 2, box.top + box.height / 2];
  const [x, y] = middle(from.getBoundingClientRect());
  const sign = key === "ArrowUp" ? -1 : 1;
  const distances = options.map((option) => {
    const [left, top] = middle(option.getBoundingClientRect());
    const down = (top - y) * sign;
    return down > 4 ? down * 20 + Math.abs(left - x) : Infinity;
  });
  const best = Math.min(...distances);
  return Number.isFinite(best) ? options[distances.indexOf(best)] : null;
}

/** One option becomes the chosen one. */
function mark(list, chosen) {
  const put = (option, name, value) => option.getAttribute(name) !== value && option.setAttribute(name, value);
  const options = optionsOf(list), one = options.find(chosen) ?? null;
  for (const option of options) {
    put(option, "aria-selected", `${option === one}`);
    put(option, "tabindex", option === (one ?? options[0]) ? "0" : "-1");
  }
  return one;
}

/** A shadow at the edge of a box says that more of it is out of sight there. */
function shadowed(box, ...contents) {
  const tell = () => {
    box.classList.toggle("qx-more-above", box.scrollTop > 1);
    box.classList.toggle("qx-more-below", box.scrollTop + box.clientHeight < box.scrollHeight - 1);
  };
  box.addEventListener("scroll", tell);
  const sizes = new ResizeObserver(tell);
  for (const one of [box, ...contents]) sizes.observe(one);
  return box;
}

/** A line of a bar chart. */
function bar(label, part, value, drawn = false) {
  const line = h("i", { style: `--part: ${part}` });
  return h("li", { class: drawn ? "qx-drawn" : "" }, h("span", {}, label), line, h("b", {}, value));
}

/** Parts, [name, label, element], of which one is seen at a time: arrow keys walk over their tabs. */
function tabs(parts, state, change) {
  const buttons = parts.map(([name, label]) => h("button", { type: "button", role: "tab", id: unique(), onclick: () => change({ tab: name }) }, label));
  const panels = parts.map(([, , element], i) => (element.setAttribute("role", "tabpanel"),
    element.setAttribute("aria-labelledby", buttons[i].id), element));
  const draw = () => {
    if (!parts.some(([name]) => name === state.tab)) state.tab = parts[0][0];
    parts.forEach(([name], i) => {
      buttons[i].setAttribute("aria-selected", name === state.tab);
      buttons[i].tabIndex = name === state.tab ? 0 : -1;
      panels[i].hidden = name !== state.tab;
    });
  };
  const press = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const to = (buttons.indexOf(event.target) + step + buttons.length) % buttons.length;
    buttons[to].click(), buttons[to].focus();
  };
  draw();
  return { draw, element: h("div", { class: "qx-side" }, h("div", { role: "tablist", class: "qx-tabs", onkeydown: press }, ...buttons), ...panels) };
}

/** 256 colours as the 32-bit numbers that an ImageData holds. */
function palette(bytes, name) {
  const start = name === "viridis" ? 0 : 768;
  const colour = (i) => [0, 1, 2].map((channel) => bytes[start + 3 * i + channel]);
  const words = Uint32Array.from({ length: 256 }, (_, i) => {
    const [red, green, blue] = colour(i);
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  const stops = Array.from({ length: 17 }, (_, i) => `rgb(${colour(Math.min(255, i * 16))})`);
  return { words, gradient: `linear-gradient(90deg, ${stops})` };
}

/** A picture of pixels: colours[i] each, 0 = transparent. */
function pixels(width, colours, height = width) {
  const canvas = h("canvas", { width, height });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(colours.buffer), width, height), 0, 0);
  return canvas;
}

/** How a hidden cell is filled, told apart by shape and not by colour alone. */
function hatch(reason, ink) {
  const canvas = h("canvas", { width: 8, height: 8 });
  const pen = canvas.getContext("2d");
  pen.strokeStyle = pen.fillStyle = ink;
  pen.globalAlpha = 0.06;
  pen.fillRect(0, 0, 8, 8);
  pen.globalAlpha = 0.4;
  pen.beginPath();
  if (reason === 2) for (const x of [-8, 0, 8]) pen.moveTo(x, 8), pen.lineTo(x + 8, 0);
  if (reason === 3) pen.arc(2, 2, 1, 0, 7), pen.moveTo(7, 6), pen.arc(6, 6, 1, 0, 7), pen.fill();
  pen.stroke();
  return canvas;
}
