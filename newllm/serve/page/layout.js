/** What opens and closes where there is little room: the side, the tools, the state. */

const find = (id) => document.getElementById(id);
const body = document.body;
export const phone = matchMedia("(max-width: 760px)");

/** What is out of sight is out of reach of the keyboard too. */
function settle() {
  const open = body.classList.contains("sidebar");
  find("sidebar").inert = phone.matches && !open;
  find("page").inert = phone.matches && open;
  find("veil").hidden = !open;
}

function openSidebar() {
  body.classList.add("sidebar");
  settle();
  find("new").focus();
}

export function closeSidebar() {
  const open = body.classList.contains("sidebar");
  body.classList.remove("sidebar");
  settle();
  if (open) find("open-sidebar").focus();
}

function toggle(name) {
  const open = body.classList.toggle(name);
  find(`open-${name}`).setAttribute("aria-expanded", String(open));
}

/** Close what Escape closes first; false if nothing is open. */
export function closeSomething() {
  if (body.classList.contains("tools")) {
    toggle("tools");
    find("open-tools").focus();
  } else if (body.classList.contains("sidebar")) {
    closeSidebar();
  } else {
    return false;
  }
  return true;
}

/** The message box grows with what is written. */
export function fit() {
  const field = find("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

find("question").addEventListener("input", fit);
find("open-sidebar").addEventListener("click", openSidebar);
find("close-sidebar").addEventListener("click", closeSidebar);
find("veil").addEventListener("click", closeSidebar);
for (const name of ["tools", "state"]) {
  find(`open-${name}`).addEventListener("click", () => toggle(name));
}
document.addEventListener("click", (event) => {
  const outside = !event.target.closest("#open-tools");
  if (outside && body.classList.contains("tools")) toggle("tools");
});
phone.addEventListener("change", closeSidebar);
settle();
