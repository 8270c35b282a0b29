/** The title of the conversation, and the field in which it is changed. */

const find = (id) => document.getElementById(id);

/** Ask for another name in place of the title; done is called with it, unless it was given up. */
export function askName(title, done) {
  const field = find("rename-field");
  const end = (keep) => {
    if (field.hidden) return;
    field.onblur = field.onkeydown = null;
    field.hidden = true;
    find("title").hidden = false;
    if (keep) done(field.value.trim());
  };
  field.onblur = () => end(true);
  field.onkeydown = (event) => {
    if (event.isComposing || event.keyCode === 229 || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    end(event.key === "Enter");
    find("rename").focus();
  };
  field.value = title;
  field.hidden = false;
  find("title").hidden = true;
  field.select();
}
