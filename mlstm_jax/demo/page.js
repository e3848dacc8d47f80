// The page of `mlstm demo`. What others wrote becomes text nodes only, never markup.

const DEBOUNCE = 20; // ms that typing rests before the text is sent
const POINTS = 1500; // of the curve; a longer text is drawn by the least and the greatest value of every stretch
const SHOWN = 200; // rows of a table; the download has all
const LONGEST = 40_000; // what is sent of a text: 20,000 characters, of two units at most, are read
const LARGEST = 8 * 2 ** 20; // bytes of a file, as server.py has it

const byId = (id) => document.getElementById(id);
const segmenter = globalThis.Intl?.Segmenter && new Intl.Segmenter(undefined, { granularity: "grapheme" });

// The connection

let socket = null;
let chosen = null; // what the server says of the choice

function connect() {
  const address = new URL("live", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  socket = new WebSocket(address);
  socket.onopen = () => {
    trouble("");
    choose(chosen?.model ?? null, chosen?.task ?? null, chosen?.unit ?? null);
    sendText();
  };
  socket.onmessage = (event) => hear(JSON.parse(event.data));
  socket.onclose = () => {
    trouble("The program does not answer. Is it still running? Trying again ...");
    endWriting();
    endScoring();
    setTimeout(connect, 1000);
  };
}

const send = (message) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));

function hear(message) {
  if (message.chosen) show(message.chosen, message.models);
  else if ("read" in message) take(message);
  else if ("wrote" in message) wrote(message);
  else if (message.written) message.number === writing && endWriting();
  else if (message.rows) message.number === scoring && addRows(message);
  else if (message.scored) message.number === scoring && endScoring();
  else if (message.error) {
    trouble(onThePage(message.error));
    if (message.number === writing) endWriting();
    if (message.number === scoring) endScoring();
    if (!message.number && chosen) show(chosen); // back to the choice that stands
  }
}

// What messages call by the names of parameters
const FIELDS = { text_key: "the field for the column", encoding: "encoding" };

const onThePage = (words) => words.replace(/`(\w+)`/g, (all, name) => FIELDS[name] ?? all);

function trouble(words) {
  byId("trouble").textContent = words;
  byId("trouble").hidden = !words;
}

let questions = 0;
const question = () => ++questions; // a number by which its answer is known

// Model, task and unit

function choose(model, task, unit) {
  send({ choose: { model, task, unit } });
}

function show(choice, models) {
  const another = choice.model !== chosen?.model || choice.unit !== chosen?.unit || choice.task !== chosen?.task;
  chosen = choice;
  if (models) options(byId("model"), models);
  options(byId("task"), choice.tasks.length ? choice.tasks : ["none"]);
  byId("model").value = choice.model;
  byId("task").value = choice.task ?? "none";
  byId("task").disabled = !choice.tasks.length;
  byId("unit").value = choice.unit;
  byId("unit").max = choice.units - 1;
  byId("own").hidden = choice.known || !choice.verdict;
  document.querySelector("header").classList.toggle("weak", choice.weak || !choice.verdict);
  byId("verdict").textContent = choice.verdict ?? `no unit record: run \`mlstm eval ${choice.model}\``;
  byId("about").textContent = choice.known
    ? `${choice.classes}; ${choice.colours}.`
    : `Unit ${choice.unit} of ${choice.units}, chosen by hand: which of its values are positive is not known. ` +
      "The colours are on the scale of the text itself.";
  showHold();
  if (another) {
    endWriting();
    endScoring();
    trouble("");
  }
  keep = 0;
  draw();
}

function options(select, names) {
  if (names.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
}

byId("model").onchange = () => choose(byId("model").value, null, null);
byId("task").onchange = () => choose(chosen.model, byId("task").value, null);
byId("own").onclick = () => choose(chosen.model, chosen.task, null);
byId("unit").oninput = () => {
  const unit = byId("unit").valueAsNumber;
  if (Number.isInteger(unit)) choose(chosen.model, chosen.task, unit);
};

// Reading

const points = { characters: [], values: [] }; // code points, as the server counts them
const cells = []; // what people take for a character: its text, its value, and the number of points up to its end
let keep = 0; // cells that are drawn as they are
let judged = null;
let pinned = null; // the cell that is looked at
let timer = 0;

byId("text").oninput = () => {
  clearTimeout(timer);
  timer = setTimeout(sendText, DEBOUNCE);
};

function sendText() {
  send({ text: byId("text").value.slice(0, LONGEST + 1), number: question() });
}

function take(message) {
  points.characters.length = points.values.length = message.start;
  for (const character of message.characters) points.characters.push(character);
  for (const value of message.values) points.values.push(value);
  // The last cell before the change may grow: an accent, or the second half of a flag.
  while (cells.length && cells.at(-1).end >= message.start) cells.pop();
  keep = Math.min(keep, cells.length);
  let end = cells.at(-1)?.end ?? 0;
  for (const text of graphemes(points.characters.slice(end))) {
    end += [...text].length;
    cells.push({ text, end, value: points.values[end - 1] });
  }
  judged = message.judged;
  byId("cut").hidden = !message.cut;
  byId("cut").textContent = "The text is longer than the page reads: what comes after the coloured part is left out.";
  draw();
}

function graphemes(characters) {
  return segmenter ? Array.from(segmenter.segment(characters.join("")), (part) => part.segment) : characters;
}

let waiting = false;

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawNow();
  });
}

function drawNow() {
  const scale = chosen?.scale ?? scaleOf(points.values);
  const { low, mid, high } = scale;
  const strength = (value) => { // above 0 is positive, 1 is the full colour, as report/heatmap.py has it
    const positive = value > mid === high > low;
    const reach = (positive ? high : low) - mid;
    return reach ? ((value - mid) / reach) * (positive ? 1 : -1) : 0;
  };
  if (!chosen?.scale) keep = 0;
  drawCells(strength);
  drawCurve(strength, scale);
  byId("place").max = Math.max(0, cells.length - 1);
  look(pinned !== null && pinned < cells.length ? pinned : null);
}

function scaleOf(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
  const square = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length || 1);
  const reach = 2 * Math.sqrt(square);
  return { low: mean - reach, mid: mean, high: mean + reach, names: ["low", "mean", "high"] };
}

function drawCells(strength) {
  const text = byId("coloured");
  while (text.childElementCount > keep) text.lastElementChild.remove();
  const added = document.createDocumentFragment();
  for (const cell of cells.slice(keep)) {
    const span = document.createElement("span");
    span.textContent = cell.text;
    span.style.backgroundColor = colour(strength(cell.value));
    added.append(span);
  }
  text.append(added);
  keep = cells.length;
}

function colour(strength) {
  const share = Math.round(60 * Math.min(1, Math.abs(strength))); // ink can be read on 60 % of the full colour
  return `color-mix(in srgb, var(--${strength > 0 ? "positive" : "negative"}) ${share}%, transparent)`;
}

function drawCurve(strength, scale) {
  const all = cells.map((cell) => strength(cell.value));
  const reach = Math.max(1.5, ...thinned(all).map(([, value]) => Math.abs(value))) * 1.08;
  const x = (place) => (all.length > 1 ? (1000 * place) / (all.length - 1) : 500).toFixed(1);
  const y = (value) => (100 - (100 * value) / reach).toFixed(1);
  const along = thinned(all).map(([place, value]) => `${x(place)} ${y(value)}`);
  const line = along.length > 1 ? `M${along.join("L")}` : along.length ? `M480 ${y(all[0])}H520` : "";
  const area = along.length > 1 ? `M0 100L${along.join("L")}L1000 100Z` : "";
  for (const path of document.querySelectorAll(".curve .line")) path.setAttribute("d", line);
  for (const path of document.querySelectorAll(".curve .area")) path.setAttribute("d", area);
  byId("full").setAttribute("d", `M0 ${y(1)}H1000M0 ${y(-1)}H1000`);
  const [low, mid, high] = scale.names;
  byId("high").textContent = `${high} ↑`;
  byId("mid").textContent = `${mid} ${short(scale.mid)}`;
  byId("low").textContent = `${low} ↓`;
}

function thinned(values) {
  const size = Math.ceil((2 * values.length) / POINTS);
  if (size <= 2) return values.map((value, place) => [place, value]);
  const kept = [];
  for (let start = 0; start < values.length; start += size) {
    const part = values.slice(start, start + size);
    const ends = [part.indexOf(Math.min(...part)), part.indexOf(Math.max(...part))];
    for (const place of ends.sort((a, b) => a - b)) kept.push([start + place, part[place]]);
  }
  return kept;
}

const short = (value) => value.toPrecision(3).replace(/\.?0+$/, "").replace("-", "−");

// What is known of a place, or of the whole text where none is looked at

function look(place) {
  pinned = place;
  document.querySelector("#coloured .here")?.classList.remove("here");
  const cell = cells[place];
  let words = "";
  if (cell) {
    byId("coloured").children[place].classList.add("here");
    byId("place").value = place;
    words = `up to “${cell.text}” (${place + 1} of ${cells.length}): ${opinion(cell.value)}`;
  } else if (judged) {
    byId("place").value = byId("place").max;
    words = `whole text: ${judged.sentiment ? `${judged.sentiment}, ` : ""}${opinion(judged.value)}`;
  }
  const x = cell && cells.length > 1 ? (1000 * place) / (cells.length - 1) : null;
  byId("here").setAttribute("d", x === null ? "" : `M${x} 0V200`);
  byId("readout").textContent = words || "\u00a0";
  byId("place").setAttribute("aria-valuetext", words);
  if (!cell) announce(words);
}

function opinion(value) {
  const { known, a, b } = chosen;
  const chance = known ? `, positive with probability ${(100 / (1 + Math.exp(-(a * value + b)))).toFixed(1)} %` : "";
  return `value ${short(value)}${chance}`;
}

let announcing = 0;

function announce(words) { // for screen readers, once typing rests
  clearTimeout(announcing);
  announcing = setTimeout(() => (byId("said").textContent = words), 1000);
}

byId("place").oninput = () => look(byId("place").valueAsNumber);
byId("place").onblur = () => look(null);
const curve = byId("curve");
curve.onpointermove = curve.onpointerdown = (event) => {
  const box = curve.getBoundingClientRect();
  const place = Math.round(((event.clientX - box.left) / box.width) * (cells.length - 1));
  look(Math.max(0, Math.min(cells.length - 1, place)));
};
curve.onpointerleave = () => look(null);
byId("coloured").onpointermove = (event) => {
  const place = event.target.tagName === "SPAN" ? [...byId("coloured").children].indexOf(event.target) : -1;
  look(place < 0 ? null : place);
};
byId("coloured").onpointerleave = () => look(null);

// Writing

let writing = null; // the number of the question that is being answered

byId("write").onclick = () => (writing === null ? startWriting() : stopWriting());
byId("hold").oninput = () => {
  showHold();
  send({ hold: byId("hold").valueAsNumber });
  if (writing === null) startWriting();
};

function showHold() {
  const k = byId("hold").valueAsNumber;
  const words = `${k > 0 ? "+" : k < 0 ? "−" : ""}${Math.abs(k)}`;
  const unit = chosen?.known ? ` deviations from neutral${k > 0 ? ", positive" : k < 0 ? ", negative" : ""}` : " (cell state)";
  byId("held").textContent = words + unit;
  byId("hold").setAttribute("aria-valuetext", words + unit);
}

function startWriting() {
  if (!chosen || socket.readyState !== WebSocket.OPEN) return;
  writing = question();
  byId("write").textContent = "Stop";
  const prime = document.createElement("span");
  prime.className = "soft";
  prime.textContent = byId("prime").value;
  byId("written").replaceChildren(prime);
  send({ hold: byId("hold").valueAsNumber });
  send({ write: byId("prime").value.slice(0, LONGEST), number: writing, fast: byId("fast").checked });
}

function stopWriting() {
  send({ stop: "writing" });
  endWriting();
}

function endWriting() {
  writing = null;
  byId("write").textContent = "Write";
}

function wrote(message) {
  if (message.number !== writing || !message.wrote) return;
  const text = byId("written");
  const k = byId("hold").value;
  const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
  if (text.lastElementChild.dataset.k !== k) {
    const span = document.createElement("span");
    span.dataset.k = k;
    span.style.backgroundColor = colour(k / 6);
    text.append(span);
  }
  text.lastElementChild.append(message.wrote);
  if (atEnd) text.scrollTop = text.scrollHeight;
}

// Scoring

let scoring = null;
let counted = null; // of its rows
let parts = []; // its rows as CSV, as bytes

byId("file").onchange = () => {
  if (byId("file").files.length) scoreFile(byId("file").files[0]);
  byId("file").value = ""; // the same file may be chosen again
};
byId("score").onclick = () => {
  if (byId("pasted").value.trim()) startScoring("", new TextEncoder().encode(byId("pasted").value));
};
byId("stop").onclick = () => {
  send({ stop: "scoring" });
  endScoring();
};
window.ondragover = (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
};
window.ondragleave = (event) => event.relatedTarget === null && byId("drop").classList.remove("over");
window.ondrop = (event) => { // a file that misses the field does not replace the page
  if (!event.dataTransfer.files.length && event.target.matches("input, textarea")) return byId("drop").classList.remove("over");
  event.preventDefault();
  byId("drop").classList.remove("over");
  if (event.dataTransfer.files.length) scoreFile(event.dataTransfer.files[0]);
  else if (event.dataTransfer.getData("text")) startScoring("", new TextEncoder().encode(event.dataTransfer.getData("text")));
};

async function scoreFile(file) {
  if (file.size > LARGEST) return trouble(`${file.name} is larger than 8 MB: take mlstm score, which reads files of any size`);
  startScoring(file.name, await file.arrayBuffer());
}

function startScoring(name, data) {
  trouble("");
  if (socket.readyState !== WebSocket.OPEN) return;
  if (!chosen?.known) return trouble("Nothing is known of this unit: choose one that has a unit record.");
  if (data.byteLength > LARGEST) return trouble("That is more than 8 MB: take mlstm score, which reads files of any size");
  scoring = question();
  counted = { rows: 0, found: 0, positive: 0, labelled: false };
  parts = [];
  byId("rows").replaceChildren();
  byId("notes").replaceChildren();
  byId("stop").hidden = false;
  byId("download").hidden = true;
  byId("counts").textContent = "reading ...";
  send({ file: name, column: byId("column").value, encoding: name && byId("encoding").value, number: scoring });
  socket.send(data);
}

function addRows({ rows, csv, notes }) {
  const room = Math.max(0, SHOWN - counted.rows);
  parts.push(Uint8Array.from(csv, (byte) => byte.charCodeAt(0)));
  const found = rows.filter((row) => row.note === null);
  counted.rows += rows.length;
  counted.found += found.length;
  counted.positive += found.filter((row) => row.sentiment === "positive").length;
  counted.labelled ||= rows.some((row) => row.label !== null);
  byId("scored").hidden = false;
  byId("rows").append(...rows.slice(0, room).map(tableRow));
  for (const cell of document.querySelectorAll("#scored .label")) cell.hidden = !counted.labelled;
  for (const words of notes) {
    const line = document.createElement("li");
    line.textContent = onThePage(words);
    byId("notes").append(line);
  }
  count("so far");
}

function tableRow(row) {
  const line = document.createElement("tr");
  const cell = (words, name) => {
    const td = document.createElement("td");
    td.className = name;
    td.textContent = words;
    line.append(td);
  };
  cell(row.line, "number");
  cell(row.text, "text");
  cell(row.label ?? "", "label");
  cell(row.value === null ? "" : short(row.value), "number");
  cell(row.probability === null ? "" : `${(100 * row.probability).toFixed(1)} %`, "number");
  cell(onThePage(row.note ?? row.sentiment), row.note ? "note" : row.sentiment);
  return line;
}

function count(words) {
  const { rows, found, positive } = counted;
  const share = found ? `, ${((100 * positive) / found).toFixed(1)} % positive` : "";
  const number = (value) => value.toLocaleString("en");
  const without = rows > found ? `, ${number(rows - found)} without a value` : "";
  const shown = rows > SHOWN ? ` (the first ${SHOWN} are shown)` : "";
  byId("counts").textContent = `${number(found)} rows ${words}${share}${without}${shown}`;
}

function endScoring() {
  if (scoring === null) return;
  scoring = null;
  byId("stop").hidden = true;
  byId("download").hidden = !counted.rows;
  if (counted.rows) count("scored");
  else byId("counts").textContent = "no rows";
}

byId("download").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
  link.download = "scored.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};

connect();
