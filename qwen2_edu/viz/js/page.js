// What outlives the view: its address, another text, a page of its own.

/** What a page's address tells of the view; what is not known there is passed over. */
function recalled({ source, data, T }) {
  const upTo = (count) => Array.from({ length: count }, (_, i) => i);
  const told = new URLSearchParams(source.recall()), to = {};
  const heads = (name) => (told.get(name) ?? "").split(" ").map(headNamed)
    .filter(({ layer, head }) => known.layer.includes(layer) && known.head.includes(head));
  const known = {
    layer: data.layers.map((layer) => layer.index), head: upTo(data.heads), query: upTo(T), key: upTo(T),
    direction: ["query", "key"], over: ["head", "group", "layer", "marked"], view: data.views.map((view) => view.name), highFirst: [true, false],
    sort: ["", "cell", ...(source.holds("shares") ? ["shares"] : []), ...data.behaviours.map((b) => b.name)], colours: ["viridis", "cividis"], mask: [true, false],
    zoom: upTo(12).map((i) => 2 ** i), tab: ["steps", "lens", "shares", "causes"], keep: upTo(1001),
  };
  to.marked = heads("marked");
  to.pinned = heads("pinned").map((one) => ({ ...one, kept: true }));
  known.minus = ["", ...to.pinned.map(nameOf)];
  for (const [name, values] of Object.entries(known)) {
    const value = values.find((one) => String(one) === told.get(name));
    if (value !== undefined) to[name] = value;
  }
  if (["layer", "head", "query"].some((one) => one in to) && !("key" in to)) to.key = null;
  return to;
}

/** The view as a page's address tells it. */
function address(state) {
  const told = new URLSearchParams();
  for (const one of ["layer", "head", "query", "key", "direction", "over", "view", "sort", "highFirst", "colours", "mask", "zoom", "minus", "tab"]) told.set(one, state[one]);
  if (state.keep !== null) told.set("keep", state.keep);
  for (const one of ["pinned", "marked"]) if (state[one].length) told.set(one, state[one].map(nameOf).join(" "));
  return told.toString();
}

/** The text in a box, and the model reads it again: the new data then draws all anew. */
function editing({ source, data, notice }) {
  const box = h("textarea", { "aria-label": "Text to read", rows: 4, spellcheck: "false", dir: "auto" });
  const show = (open) => {
    form.hidden = !open;
    made.setAttribute("aria-expanded", open);
    if (open) box.value = data.text;
    else notice.textContent = ""; // what it told of that text
    (open ? box : made).focus();
  };
  const made = button("Edit the text", null, () => show(form.hidden));
  made.classList.add("qx-edit");
  made.setAttribute("aria-expanded", false);
  const run = async (event) => {
    event.preventDefault();
    notice.textContent = "The model reads …";
    try {
      await source.ask("read", { text: box.value });
    } catch (error) {
      notice.textContent = error.message;
    }
  };
  const press = (event) => {
    if (event.key === "Escape") show(false);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event);
    event.stopPropagation();
  };
  const form = h("form", { class: "qx-form", hidden: true, onsubmit: run, onkeydown: press }, box,
    h("div", { class: "qx-tools" }, h("button", {}, "Read it"), button("Cancel", null, () => show(false)),
      h("span", { class: "qx-note" }, "Ctrl+Enter reads, Escape cancels.")));
  return { button: made, form };
}

/** A button that saves all as a page, which opens as this is seen now. */
function saving({ source, state, notice }) {
  const made = button("Save as a page", null, async () => {
    if (made.getAttribute("aria-disabled") === "true") return;
    made.setAttribute("aria-disabled", true);
    notice.textContent = "Writing the page: its logit lens may take some seconds.";
    try {
      const page = new Blob([await source.ask("page", { view: address(state) })], { type: "text/html" });
      const link = h("a", { href: URL.createObjectURL(page), download: "attention.html" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      notice.textContent = `attention.html is saved, ${(page.size / 1e6).toFixed(1)} MB: it opens without a notebook.`;
    } catch (error) {
      notice.textContent = error.message;
    }
    made.removeAttribute("aria-disabled");
  });
  made.title = "One file, without kernel or network";
  return made;
}
