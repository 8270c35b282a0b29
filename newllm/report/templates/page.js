(function () {
  var root = document.documentElement, pages = document.querySelectorAll(".page");
  function kept(key) { try { return localStorage.getItem(key); } catch (e) { return null; } }
  function keep(key, value) { try { localStorage.setItem(key, value); } catch (e) { /* a private window */ } }
  function speak(language) {
    pages.forEach(function (page) { page.hidden = page.lang !== language; });
    root.lang = language;
    document.title = document.querySelector('.page[lang="' + language + '"]').dataset.title;
  }
  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function paint() {
    document.querySelectorAll("[data-theme-button]").forEach(function (button) {
      button.setAttribute("aria-pressed", String(isDark()));
    });
  }
  document.addEventListener("click", function (event) {
    var button = event.target.closest("button");
    if (!button) { return; }
    if (button.dataset.speak) {
      speak(button.dataset.speak);
      keep("newllm-language", button.dataset.speak);
      document.querySelector('.page[lang="' + button.dataset.speak + '"] [data-speak]').focus();
    } else {
      root.dataset.theme = isDark() ? "light" : "dark";
      keep("newllm-theme", root.dataset.theme);
      paint();
    }
  });
  var asked = new URLSearchParams(location.search);
  var theme = asked.get("theme") || kept("newllm-theme");
  if (theme === "dark" || theme === "light") { root.dataset.theme = theme; }
  var language = asked.get("lang") || kept("newllm-language") || navigator.language || "en";
  speak(language.slice(0, 2) === "ja" ? "ja" : "en");
  paint();
})();
