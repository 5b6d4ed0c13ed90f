// One pair after another. The next one is fetched while this one is read; a verdict waits in the browser until the
// server has stored it, also when the server is away or the page is closed.
const prefix = document.body.dataset.prefix;
const at = (id) => document.getElementById(id);
const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", t: "tie", b: "both_bad", s: "skip" };
const SAID = { left: "Left is better", right: "Right is better", tie: "Tie", both_bad: "Both bad", skip: "Skipped" };
const OUTBOX = `manners-outbox ${document.body.dataset.visitor}`;  // one browser may serve several people
const FINAL = [400, 403, 404, 409, 413, 422];  // the verdict itself is refused, and would be again
const RETRY = 2000;

let pair = null;
const ahead = [];  // promises of pairs, the next one first
let shownAt = 0;
let sending = null;

async function post(path, body) {
  const answer = await fetch(`${prefix}/label/${path}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body ?? {}),
  });
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  const error = new Error(said.error?.message ?? `the server answered ${answer.status}`);
  error.final = FINAL.includes(answer.status);
  throw error;
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const outbox = () => JSON.parse(localStorage.getItem(OUTBOX) ?? "[]");
const keep = (verdicts) => localStorage.setItem(OUTBOX, JSON.stringify(verdicts));

// What waits for the server is said beside what else goes wrong, never in place of it.
const notices = new Map();
function notice(text, about = "") {
  notices.set(about, text);
  at("notice").textContent = [...notices.values()].filter(Boolean).join(" ");
  at("notice").hidden = !at("notice").textContent;
}

async function flush() {
  for (let verdicts = outbox(); verdicts.length; verdicts = outbox()) {
    try {
      await post("verdict", verdicts[0]);
      notice("", OUTBOX);
    } catch (error) {
      if (!error.final) {
        const count = `${verdicts.length} verdict${verdicts.length > 1 ? "s" : ""}`;
        notice(`${count} not stored yet: ${error.message}. Trying again.`, OUTBOX);
        await wait(RETRY);
        continue;
      }
      notice(`One verdict was refused: ${error.message}.`, OUTBOX);
    }
    keep(outbox().slice(1));
  }
}

// Nothing may wait between the last look into the outbox and `sending = null`: a verdict that came then would stay there.
function send() {
  sending ??= flush().finally(() => { sending = null; progress(); });
  return sending;
}

async function progress() {
  try {
    const far = await (await fetch(`${prefix}/label/progress`)).json();
    at("progress").textContent = `${far.today} today, ${far.total} in all, ${far.left} left`;
  } catch { /* the outbox says that the server is away */ }
}

function fetchPair() {
  return post("next").then((said) => { notice("", "next"); return said.pair; }).catch(async (error) => {
    notice(`No new pair: ${error.message}. Trying again.`, "next");
    await wait(RETRY);
    return fetchPair();
  });
}

function turn(role, html) {
  const whole = document.createElement("div");
  whole.className = "turn";
  const title = document.createElement("h3");
  title.textContent = { user: "Asked", assistant: "Answered", system: "Instruction" }[role];
  const text = document.createElement("div");
  text.className = "text";
  text.innerHTML = html;
  whole.append(title, text);
  return whole;
}

function show(shown) {
  pair = shown;
  at("pair").hidden = !pair;
  at("empty").hidden = Boolean(pair);
  if (!pair) return;
  at("prompt").replaceChildren(...pair.turns.map(({ role, html }) => turn(role, html)));
  at("left").innerHTML = pair.left;
  at("right").innerHTML = pair.right;
  for (const id of ["prompt", "left", "right"]) at(id).scrollTop = 0;
  blur(pair.sensitive);
  for (const input of document.querySelectorAll(".more input")) input.checked = false;
  at("comment").value = "";
  shownAt = performance.now();
  window.scrollTo(0, 0);
}

function blur(on) { at("pair").classList.toggle("blurred", on); at("reveal").hidden = !on; }

let moving = null;

function forward() { moving ??= step().finally(() => { moving = null; }); return moving; }

async function step() {
  show(await (ahead.shift() ?? fetchPair()));
  if (pair && !ahead.length) ahead.push(fetchPair());
}

async function idle() {
  for (;;) {
    await wait(5000);
    if (!pair) await forward();
  }
}

async function choose(choice) {
  if (!pair) return;
  const checked = [...document.querySelectorAll(".more input:checked")];
  const strength = checked.find((input) => input.name === "strength")?.value;
  const verdict = {
    view: pair.view,
    choice,
    strength: strength ? Number(strength) : null,
    reasons: checked.filter((input) => input.name === "reason").map((input) => input.value),
    comment: at("comment").value,
    seconds: Math.min(86400, (performance.now() - shownAt) / 1000),
  };
  pair = null;
  keep([...outbox(), verdict]);
  at("said").textContent = `${SAID[choice]}. Next pair.`;
  send();
  await forward();
}

async function undo() {
  await Promise.all([send(), moving]);
  try {
    const { pair: again } = await post("undo");
    if (!again) { notice("There is nothing to take back."); return; }
    if (pair) ahead.unshift(Promise.resolve(pair));
    show(again);
    at("said").textContent = "Taken back. Judge this pair again.";
    await progress();
  } catch (error) { notice(`Nothing was taken back: ${error.message}`); }
}

function guidelines() {
  const drawer = at("guidelines");
  drawer.hidden = !drawer.hidden;
  at("help").setAttribute("aria-expanded", String(!drawer.hidden));
  (drawer.hidden ? at("help") : drawer).focus();
}

async function report() {
  const dialog = at("reporting");
  if (dialog.returnValue !== "report" || !pair) return;
  const reported = pair;
  pair = null;
  try {
    await post("flag", { view: reported.view, reason: dialog.querySelector("input:checked").value, note: at("note").value });
    at("said").textContent = "Reported. Next pair.";
    at("note").value = "";
    await forward();
  } catch (error) { pair = reported; notice(`Not reported: ${error.message}`); }
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  const scrolls = event.key.startsWith("Arrow") && event.target.closest("[tabindex]");
  if (event.key === "Escape" && !at("guidelines").hidden) return guidelines();
  if (typing || scrolls || event.ctrlKey || event.altKey || event.metaKey || event.repeat || at("reporting").open) return;
  if (KEYS[event.key]) { event.preventDefault(); choose(KEYS[event.key]); }
  else if (event.key === "u") undo();
  else if (event.key === "?") guidelines();
});
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}
at("undo").addEventListener("click", undo);
at("help").addEventListener("click", guidelines);
at("report").addEventListener("click", () => { at("reporting").returnValue = ""; at("reporting").showModal(); });
at("reporting").addEventListener("close", report);
at("reveal").addEventListener("click", () => blur(false));

await send();
await post("begin").catch(() => {});
await forward();
idle();
