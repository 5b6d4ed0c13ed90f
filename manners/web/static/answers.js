// What the labelling page and the chat have in common: answers as they are read, and gestures as they are meant.

export const CHOICES = { 1: "left", 2: "right", t: "tie", b: "both_bad", s: "skip" };

// A shortcut is a letter or a digit, also with CapsLock. Where a keyboard writes something else by the same key (another
// alphabet, a French row of digits), it is the key's place that counts.
const PLACES = { Slash: "?" };
for (const one of "12") PLACES[`Digit${one}`] = one;
for (const one of "bchrstuvy") PLACES[`Key${one.toUpperCase()}`] = one;

export function shortcut(event) {
  if (event.isComposing || event.keyCode === 229 || event.ctrlKey || event.altKey || event.metaKey) return null;
  const key = event.key.toLowerCase();
  if (/^[a-z0-9?]$/.test(key)) return key;
  const digit = event.code.startsWith("Digit") && !event.shiftKey;
  const letter = event.code.startsWith("Key") && /[^\x00-\x7f]/.test(key);
  const question = event.code === "Slash" && event.shiftKey && /[^\x00-\x7f]/.test(key);
  return digit || letter || question ? PLACES[event.code] ?? null : null;
}

// Enter that an input method takes for its own is no Enter: Safari says so by 229 alone.
export const entered = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;

export const writing = (event) => Boolean(event.target.closest("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])"));

// A gesture judges what was on the screen when it began, and only what has been there long enough to be seen.
// `judgeable(on)` is told when that is; a press that is held, and the second one of a double click, begin nothing new.
export function gestures(judgeable) {
  const shortest = Number(document.body.dataset.shortest);
  const held = new Set();
  let shown = null, since = Infinity, began = null, timer = 0;

  const seen = () => performance.now() - since >= shortest;
  function watch() {
    if (seen()) return;
    clearTimeout(timer);
    since = Infinity;
    const what = shown;
    if (what === null || document.hidden) return;
    requestAnimationFrame(() => requestAnimationFrame(() => {  // it is drawn by the second one
      if (what !== shown || since !== Infinity || document.hidden) return;
      since = performance.now();
      timer = setTimeout(() => judgeable(true), shortest + 1);
    }));
  }
  const begin = () => { began = seen() ? shown : null; };

  document.addEventListener("visibilitychange", watch);
  window.addEventListener("blur", () => held.clear());
  document.addEventListener("keyup", (event) => held.delete(event.code), true);
  document.addEventListener("pointerdown", begin, true);
  document.addEventListener("keydown", (event) => {
    if (event.repeat || held.has(event.code)) { began = null; return; }
    held.add(event.code);
    begin();
  }, true);
  return {
    show(what) {
      shown = what;
      since = Infinity;
      began = null;
      judgeable(false);
      watch();
    },
    // Whether this event is a new gesture on what is shown; a screen reader presses without a key or a pointer.
    means(event) {
      const whole = shown !== null && seen() && (began === shown || (event.type === "click" && event.detail === 0 && !held.size));
      began = null;
      return whole;
    },
    seconds: () => (since === Infinity ? 0 : Math.min(86400, (performance.now() - since) / 1000)),
  };
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // without HTTPS there is no clipboard but this one
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

// What would turn the letters of a text round is shown, as the server shows it.
export const unturned = (text) => text.replace(/[\u202a-\u202e\u2066-\u2069]/g, (one) => `\\u${one.charCodeAt(0).toString(16)}`);

// Fill a pane with an answer as the server has drawn it; code gets a button that copies it.
export function fill(pane, html) {
  pane.innerHTML = html;
  for (const figure of pane.querySelectorAll("figure")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await copy(figure.querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    figure.querySelector("pre").before(button);
  }
}

export function fillRaw(pane, text) {
  const ours = pane.querySelectorAll(":scope > .hint");  // nothing that an answer says has a class
  const raw = document.createElement("pre");
  raw.className = "raw";
  raw.textContent = unturned(text);
  pane.replaceChildren(raw, ...ours);
}
