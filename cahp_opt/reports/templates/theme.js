(function () {
  "use strict";
  var root = document.documentElement, button = document.getElementById("theme");
  var dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  try { var told = window.localStorage.getItem("cahp-theme"); } catch (error) { told = null; }
  if (told === "light" || told === "dark") { root.dataset.theme = told; dark = told === "dark"; }
  function name() { button.textContent = dark ? "Light" : "Dark"; }
  button.hidden = false;
  name();
  button.addEventListener("click", function () {
    dark = !dark;
    root.dataset.theme = dark ? "dark" : "light";
    try { window.localStorage.setItem("cahp-theme", root.dataset.theme); } catch (error) { /* a private window */ }
    name();
  });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (each) { each.open = true; });
  });
})();
