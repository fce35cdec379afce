// Where the numbers come from: the kernel of a notebook, or the page itself.

/** Ask the kernel: load(name) answers bytes, or for "lens 5", "grid 5 0 32" and "shares 5" the rows of a table. */
function fromKernel(model) {
  const asked = new Map(); // name -> the promise of an answer
  const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const take = (answer, buffers) => {
    const request = asked.get(answer.name);
    if (answer.error) request?.reject?.(new Error(answer.error));
    else request?.resolve?.(answer.rows ?? bytes(buffers[0]));
  };
  const ask = (name, more) => {
    const request = {};
    request.promise = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    asked.set(name, request);
    model.send({ name, ...more });
    return request.promise;
  };
  const load = (name) => {
    if (["thumbnails", "norms", "colours"].includes(name)) return Promise.resolve(bytes(model.get(name)));
    return asked.get(name)?.promise ?? ask(name);
  };
  const { layer, query, key, rows } = model.get("data").opens; // so that the first paint needs no kernel
  asked.set(`layer ${layer}`, { promise: Promise.resolve(bytes(model.get("first"))) });
  asked.set(`cell ${query} ${key} raw`, { promise: Promise.resolve(rows) });
  const heard = []; // to be unheard when this view closes; another view of the model may go on
  const listen = (event, act) => (model.on(event, act), heard.push([event, act]));
  listen("msg:custom", take);
  return {
    load,
    holds: () => model.get("data").lens.length > 0, // there is a head over the vocabulary
    ask,
    recall: () => "",
    remember: () => {},
    data: model.get("data"),
    get: (name) => model.get(name),
    set: (chosen) => (model.set(chosen), model.save_changes()),
    listen: (name, act) => listen(`change:${name}`, act),
    close: () => heard.forEach(([event, act]) => model.off(event, act)),
  };
}

/** The same from a page: its blobs are deflated and in base64. */
function fromPage(page) {
  const loaded = new Map();
  const inflate = async (text) => {
    const packed = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  /** A layer in full: of each row q a page has q+1 weights, as those of the future are 0; then the mask. */
  const unfold = (bytes) => {
    const T = page.data.tokens.length, { heads } = page.data, all = new Uint8Array((heads + 1) * T * T);
    let at = 0;
    for (let row = 0; row < heads * T; row++) {
      const end = at + (row % T) + 1;
      all.set(bytes.subarray(at, end), row * T);
      at = end;
    }
    all.set(bytes.subarray(at), heads * T * T);
    return all;
  };
  const blob = (name) => {
    if (!loaded.has(name)) loaded.set(name, inflate(page.blobs[name]).then(name.startsWith("layer") ? unfold : undefined));
    return loaded.get(name);
  };
  const tables = new Map(); // name -> its rows
  const table = async (name) => {
    if (!tables.has(name)) tables.set(name, JSON.parse(new TextDecoder().decode(await blob(name))));
    return tables.get(name);
  };
  const holds = (name) => name in page.blobs;
  const load = async (name) => {
    const [kind, at, from, to] = name.split(" ");
    if (!["lens", "grid", "shares"].includes(kind)) return blob(name);
    const rows = await table(kind === "shares" ? kind : "lens");
    return kind === "grid" ? rows.slice(from, to).map((places) => places[at][0]) : rows[at];
  };
  const nothing = () => {};
  const recall = () => location.hash.slice(1) || page.view;
  const remember = (view) => {
    try {
      history.replaceState(null, "", `#${view}`);
    } catch { /* a page within a page may have no address of its own */ }
  };
  return { load, holds, recall, remember, whole: true, data: page.data, get: (name) => page[name], set: nothing, listen: nothing, close: nothing };
}
