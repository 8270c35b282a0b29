/** Session files: dropped on the page, chosen, and saved. */

const KEPT_MS = 60_000;
const find = (id) => document.getElementById(id);

/** take: called with the files that were dropped or chosen. */
export function receiveFiles(take) {
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    find("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) find("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    find("drop").hidden = true;
    take([...event.dataTransfer.files]);
  });
  find("open").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", () => {
    take([...find("file").files]);
    find("file").value = ""; // the same file can be chosen again
  });
}

/** Hand a file to the user under a name that any system takes. */
export function saveFile(blob, title) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${title.replace(/[\\/:*?"<>|\p{Cc}]/gu, "-").slice(0, 60)}.session`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
}

/** What a file is called; null for the server's own names, which say nothing. */
export function titleIn(file) {
  const name = file.name.replace(/( ?\(\d+\))?\.session$/, "");
  return /^[0-9a-f]{8}$/.test(name) ? null : name;
}
