// Charts in the place of pictures, and tables that sort and filter. Without script both stand as
// pictures and plain tables.

const style = getComputedStyle(document.body);
const quiet = "var(--quiet)", line = "var(--line)", text = "var(--text)";
const GAP = 32; // between panels, pixels
const axis = { labelColor: quiet, titleColor: text, tickColor: line, domainColor: quiet, gridColor: line,
  labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 260, labelFlush: false };

function sized(written, room) {
  const spec = structuredClone(written);
  const narrow = room < 640;
  delete spec.title; // stands above, where it wraps
  spec.background = "transparent";
  spec.config = { ...spec.config, font: style.fontFamily, axis, view: { stroke: null }, facet: { spacing: GAP },
    header: { labelColor: text, labelFontSize: 12.5, labelFontWeight: "bold", labelAnchor: "start" },
    legend: { disable: true } }; // its buttons stand above
  if (narrow) spec.columns = 1;
  if (narrow) spec.resolve = { ...spec.resolve, axis: { ...spec.resolve?.axis, x: "independent" } };
  const columns = Math.min(spec.columns, spec.usermeta.panels);
  spec.spec.width = Math.floor((room - GAP * (columns - 1)) / columns);
  return [spec, columns];
}

const hidden = (figure) => [...figure.querySelectorAll(".legend [aria-pressed=false]")].map(({ value }) => value);

async function draw(figure) {
  const plot = figure.querySelector(".plot");
  const room = Math.floor(plot.clientWidth);
  if (!room || room === figure.room) return;
  figure.room = room;
  const [spec, columns] = sized(figure.spec, room);
  const options = { actions: false, renderer: "svg", ast: true, tooltip: { disableDefaultStyle: true } };
  const target = document.createElement("div");
  target.style.visibility = "hidden"; // until it has its size
  figure.view?.finalize();
  figure.view = null;
  plot.replaceChildren(target);
  const { view } = await vegaEmbed(target, spec, options);
  const over = target.querySelector("svg").width.baseVal.value - room + 3; // axes and their words
  view.signal("child_width", Math.max(60, spec.spec.width - Math.ceil(over / columns)));
  await view.signal("hidden", hidden(figure)).resize().runAsync();
  if (!target.isConnected) return view.finalize(); // drawn anew meanwhile
  figure.view = view;
  target.style.visibility = "";
}

function toggle({ target, currentTarget }) {
  const name = target.closest("button");
  if (!name) return;
  name.setAttribute("aria-pressed", name.getAttribute("aria-pressed") !== "true");
  const figure = currentTarget.parentElement;
  figure.view?.signal("hidden", hidden(figure)).runAsync();
}

// A finger neither hovers nor meets a mark exactly: a tap points at the nearest one.
function tap(event) {
  const svg = event.currentTarget.querySelector("svg");
  if (event.pointerType === "mouse" || !svg) return;
  const places = [...svg.querySelectorAll(".mark-symbol.role-mark path")].map((mark) => {
    const box = mark.getBoundingClientRect();
    const [clientX, clientY] = [box.x + box.width / 2, box.y + box.height / 2];
    return { mark, clientX, clientY, away: Math.hypot(clientX - event.clientX, clientY - event.clientY) };
  });
  const near = places.reduce((one, other) => (other.away < one.away ? other : one), { away: 28 });
  const type = near.mark ? "pointermove" : "pointerout";
  (near.mark ?? svg).dispatchEvent(new PointerEvent(type, { ...near, bubbles: true }));
}

for (const template of document.querySelectorAll("template.chart")) {
  const figure = template.parentElement;
  if (!window.vegaEmbed || !CSS.supports("color", "light-dark(#000, #fff)")) break;
  figure.append(template.content.cloneNode(true));
  figure.spec = JSON.parse(figure.querySelector("script").textContent);
  figure.classList.add("charted");
  figure.querySelector(".plot").addEventListener("click", tap);
  figure.querySelector(".legend").addEventListener("click", toggle);
  new ResizeObserver(() => draw(figure)).observe(figure);
}

for (const table of document.querySelectorAll(".sortable table")) {
  const sorted = new DataTable(table, { paging: false, info: false, order: [], autoWidth: false,
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null } });
  const tools = document.createElement("p");
  const search = Object.assign(document.createElement("input"), {
    type: "search", placeholder: "Filter rows by words, such as rag int4" });
  search.setAttribute("aria-label", "Filter the table's rows");
  const count = Object.assign(document.createElement("output"), { className: "count" });
  const all = sorted.rows().count();
  search.oninput = () => {
    sorted.search(search.value).draw();
    const left = sorted.rows({ search: "applied" }).count();
    count.value = left < all ? `${left} of ${all} rows` : `${all} rows; a click on a heading sorts`;
  };
  search.oninput();
  tools.className = "tools";
  tools.append(search, count);
  table.closest(".scroll").before(tools);
  const isKey = (cell, at) => at < 3 && !cell.classList.contains("number");
  const headings = [...table.tHead.rows[0].cells];
  const keys = headings.slice(0, headings.findIndex((cell, at) => !isKey(cell, at)));
  const keep = () => keys.reduce((left, heading, at) => { // in view while the others scroll
    for (const row of table.rows) {
      row.cells[at].classList.add("kept");
      row.cells[at].style.setProperty("--left", `${left}px`);
    }
    return left + heading.offsetWidth;
  }, 0);
  new ResizeObserver(keep).observe(table);
}
