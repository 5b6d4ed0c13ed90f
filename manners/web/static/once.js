// What was just made is shown once: a reload opens the page, and does not make another one. This runs before any of it
// is drawn, so that no reload is too quick for it.
history.replaceState(null, "", document.currentScript.dataset.to);
