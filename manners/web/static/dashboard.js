// While a run goes on its curves grow: that part of the page is fetched anew.
const EVERY = 10000;

async function follow() {
  const page = await (await fetch(location.href)).text();
  const live = new DOMParser().parseFromString(page, "text/html").getElementById("live");
  const here = document.getElementById("live");
  if (!live || live.innerHTML === here.innerHTML) return;
  const focused = here.contains(document.activeElement) ? document.activeElement.id : "";
  here.replaceChildren(...live.childNodes);
  if (focused) document.getElementById(focused)?.focus();
}

setInterval(() => { if (!document.hidden) follow().catch(() => {}); }, EVERY);
