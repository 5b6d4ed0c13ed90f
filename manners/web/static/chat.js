// A conversation. An answer is plain text while it is written, and rendered by the server once it is complete.
const prefix = document.body.dataset.prefix;
const at = (id) => document.getElementById(id);
const KEYS = { 1: "left", 2: "right", t: "tie", b: "both_bad", s: "skip" };

let key = null;
let asked = null;       // the two answers that wait for a verdict
let stopping = null;    // ends the answer that is being written
let reported = null;

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await fetch(`${prefix}/chat/${path}`, options);
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  const error = new Error(said.error?.message ?? `the server answered ${answer.status}`);
  error.final = answer.status < 500 && answer.status !== 429;  // it would be refused again
  throw error;
}

// Why nobody answers yet is said beside what else happens, and neither takes the other's place.
const notices = { said: "", model: "" };
function notice(text, about = "said") {
  if (notices[about] === text) return;  // a screen reader would say it again
  notices[about] = text;
  at("notice").textContent = [notices.said, notices.model].filter(Boolean).join(" ");
}
const failing = (act) => async (...given) => { try { await act(...given); } catch (error) { notice(error.message); } };

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

function turn(role, html) {
  const made = element("div", `turn ${role}`);
  const text = element("div", "text");
  text.innerHTML = html;
  made.append(text);
  return made;
}

function button(text, label, act) {
  const made = element("button", "quiet", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", failing(act));
  return made;
}

function answered(html, response, thumb) {
  const made = turn("assistant", html);
  const after = element("div", "after");
  const thumbs = [1, -1].map((value) => {
    const one = button(value > 0 ? "Good" : "Bad", value > 0 ? "Good answer" : "Bad answer", async () => {
      const wanted = one.getAttribute("aria-pressed") === "true" ? 0 : value;
      await call("thumb", { response, value: wanted });
      for (const each of thumbs) each.setAttribute("aria-pressed", String(each === one && wanted !== 0));
    });
    one.setAttribute("aria-pressed", String(thumb === value));
    return one;
  });
  after.append(...thumbs, button("Report", "Report this answer", () => {
    reported = response;
    at("reporting").returnValue = "";
    at("reporting").showModal();
  }));
  made.append(after);
  return made;
}

async function list() {
  const { conversations } = await call("all");
  at("conversations").replaceChildren(...conversations.map((one) => {
    const item = element("li");
    const opener = element("button", "", one.title);
    if (one.key === key) opener.setAttribute("aria-current", "true");
    opener.addEventListener("click", failing(() => open(one.key)));
    item.append(opener);
    return item;
  }));
  return conversations;
}

function confirming(sure) {
  at("delete").dataset.sure = sure ? "yes" : "";
  at("delete").textContent = sure ? "Really delete it? Click again" : "Delete this conversation";
}

async function open(which) {
  stopping?.abort();
  key = which;
  asked = null;
  at("asking").hidden = true;
  at("say").hidden = true;
  confirming(false);
  const { turns } = which ? await call(which) : { turns: [] };
  if (key !== which) return;  // another one was opened while this one was fetched
  at("turns").replaceChildren(...turns.map((one) => (
    one.role === "user" ? turn("user", one.html) : answered(one.html, one.response, one.thumb))));
  notice("");
  at("consent").hidden = Boolean(key);
  at("say").hidden = !key;
  if (key) { toEnd(); at("words").focus(); }
  await list();
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

async function say(text) {
  if (asked) await choose("skip");
  stopping = new AbortController();
  at("words").value = "";
  at("send").hidden = true;
  at("stop").hidden = false;
  notice("");
  const mine = element("div", "turn user");
  mine.append(element("div", "plain", text));
  const theirs = element("div");
  at("turns").append(mine, theirs);
  toEnd();
  let complete = false;
  try {
    const answer = await fetch(`${prefix}/chat/${key}/say`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ text }), signal: stopping.signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error?.message ?? `the server answered ${answer.status}`);
    for await (const event of events(answer)) complete = follow(event, mine, theirs) || complete;
    if (!complete) throw new Error("the answer broke off");
    await list();
  } catch (error) {
    mine.remove();
    theirs.remove();
    at("words").value = text;
    notice(error.name === "AbortError" ? "Stopped. Nothing was kept; change your message or send it again." : `No answer: ${error.message}. Your message is still here.`);
  } finally {
    stopping = null;
    at("send").hidden = false;
    at("stop").hidden = true;
  }
}

// Who has scrolled up to read is left where they are.
const atEnd = () => window.innerHeight + window.scrollY > document.body.scrollHeight - 40;
const toEnd = () => window.scrollTo(0, document.body.scrollHeight);

function follow(event, mine, theirs) {
  if (event.kind === "failed") throw new Error(event.message);
  if (event.kind === "begin") {
    theirs.className = event.sides === 2 ? "two" : "";
    for (let side = 0; side < event.sides; side += 1) {
      const pane = element("div", "turn assistant");
      if (event.sides === 2) pane.append(element("h3", "", side ? "Right" : "Left"));
      pane.append(element("div", "plain text"));
      theirs.append(pane);
    }
  } else if (event.kind === "piece") {
    const follows = atEnd();
    theirs.children[event.side].querySelector(".plain").append(event.text);
    if (follows) toEnd();
  } else if (event.kind === "done") {
    mine.replaceWith(turn("user", event.asked));
    if (event.comparison === null) {
      theirs.replaceWith(answered(event.html[0], event.responses[0], 0));
    } else {
      event.html.forEach((html, side) => {
        const text = theirs.children[side].querySelector(".text");
        text.className = "text";
        text.innerHTML = html;
      });
      asked = { ...event, theirs, since: performance.now() };
      at("asking").hidden = false;
      if (!at("words").value) at("words").blur();  // so that one key answers
      theirs.firstChild.scrollIntoView({ block: "start" });
    }
    return true;
  }
  return false;
}

async function choose(choice) {
  if (!asked) return;
  const which = key;
  const question = asked;
  const { comparison, responses, html, theirs, since } = question;
  asked = null;
  at("asking").hidden = true;
  const seconds = Math.min(86400, (performance.now() - since) / 1000);
  let response;
  try {
    ({ response } = await call(`${which}/choose`, { comparison, choice, seconds }));
  } catch (error) {
    if (key !== which) return;
    if (!error.final) { asked = question; at("asking").hidden = false; }
    throw new Error(`Your choice was not stored: ${error.message}`);
  }
  if (key !== which) return;
  theirs.replaceWith(answered(html[responses.indexOf(response)], response, 0));
  notice(choice === "skip" ? "Skipped." : "Thank you. The conversation goes on with this answer.");
  at("words").focus();
}

async function waitForModel() {
  for (;;) {
    const { phase, reason } = await call("state").catch((error) => ({ phase: "away", reason: error.message }));
    if (phase === "ready") { notice("", "model"); return; }
    notice(phase === "loading" ? `The model is being loaded${reason ? ` (${reason})` : ""}; you can write already.` : `The model does not run: ${reason}`, "model");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

at("new").addEventListener("click", failing(() => open(null)));
at("consent").addEventListener("submit", failing(async (event) => {
  event.preventDefault();
  await open((await call("begin", {})).key);
}));
at("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("words").value.trim();
  if (text && !stopping) failing(say)(text);
});
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); at("say").requestSubmit(); }
});
at("stop").addEventListener("click", () => stopping?.abort());
at("delete").addEventListener("click", failing(async () => {
  if (!at("delete").dataset.sure) { confirming(true); return; }
  confirming(false);
  const gone = key;
  const { learned_by: versions } = await call(`${gone}/delete`, {});
  await (key === gone ? open(null) : list());
  notice(versions.length ? `Deleted. These versions had learned from it already: ${versions.join(", ")}.` : "Deleted.");
}));
at("reporting").addEventListener("close", failing(async () => {
  if (at("reporting").returnValue !== "report") return;
  await call("report", { response: reported, reason: at("reporting").querySelector("input:checked").value, note: at("note").value });
  at("note").value = "";
  notice("Reported. A reviewer will look at it.");
}));
for (const one of document.querySelectorAll("[data-choice]")) one.addEventListener("click", failing(() => choose(one.dataset.choice)));
document.addEventListener("keydown", (event) => {
  if (!asked || event.target.closest("textarea, input, dialog") || event.ctrlKey || event.altKey || event.metaKey) return;
  if (KEYS[event.key]) { event.preventDefault(); failing(choose)(KEYS[event.key]); }
});

waitForModel();
const conversations = await list();
await open(conversations.length ? conversations[0].key : null);
