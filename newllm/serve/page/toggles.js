/** The buttons for colours and language. Each says what it changes to. */

import * as preferences from "./preferences.js";
import { language, say, setLanguage } from "./words.js";

const find = (id) => document.getElementById(id);
const other = (value, one, two) => (value === one ? two : one);

/** The page in its colours and words; called again after each change of either. */
export function showToggles() {
  setLanguage(language());
  find("language").textContent = say("other_language");
  find("language").lang = other(language(), "en", "ja");
  const next = other(preferences.theme(), "dark", "light");
  find("theme").textContent = say(`theme_${next}`);
  find("theme").setAttribute("aria-label", say(`theme_to_${next}`));
  document.documentElement.dataset.theme = preferences.theme();
}

/** changed: called when the page has to be shown again. */
export function beginToggles(changed) {
  setLanguage(preferences.language());
  find("theme").addEventListener("click", () => {
    preferences.setTheme(other(preferences.theme(), "dark", "light"));
    changed();
  });
  find("language").addEventListener("click", () => {
    preferences.setLanguage(other(language(), "en", "ja"));
    setLanguage(preferences.language());
    changed();
  });
  preferences.onSystemTheme(changed);
}
