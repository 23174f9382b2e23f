// A dialog of ours with a title and a button that closes it, and the one that shows a report.

import { copy } from "../page/clipboard.js"
import { element } from "../page/dom.js"
import { word } from "../page/words.js"

const ROW = /^\|(.*)\|$/ // of a table, as reports write them
const RULE = /^[\s|:-]+$/ // below the first row

/** Opens one; Escape, the button and a click outside close it. */
export function openDialog(title, kind, ...content) {
  const close = element("button", { type: "button", className: "loom-dialog-close", "aria-label": word("Close") }, "\u00d7")
  const dialog = element("dialog", { className: `loom loom-dialog ${kind}`, "aria-label": title },
    element("div", { className: "loom-dialog-head" }, element("b", {}, title), close), ...content)
  close.addEventListener("click", () => dialog.close())
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close())
  dialog.addEventListener("close", () => dialog.remove())
  for (const kind of ["paste", "copy", "wheel", "keydown"]) {
    dialog.addEventListener(kind, (event) => event.stopPropagation())
  }
  document.body.append(dialog)
  dialog.showModal()
  return dialog
}

/** Shows a text with its tables as tables. */
export function openText(title, text) {
  const button = element("button", { type: "button" }, word("Copy"))
  const foot = element("div", { className: "loom-body-foot" }, button)
  const shown = element("div", { className: "loom-dialog-text", tabIndex: 0, role: "document" }, ...parts(text))
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text, foot)) ? word("Copied") : word("Select it to copy")
  })
  return openDialog(title, "loom-body-text", shown, foot)
}

/** Paragraphs and tables; whatever is in them is text. */
function parts(text) {
  const found = []
  for (const block of text.split(/\n{2,}/)) {
    const lines = block.split("\n").filter((line) => line.trim())
    const rows = lines.filter((line) => ROW.test(line)).filter((line) => !RULE.test(line))
    const words = lines.filter((line) => !ROW.test(line))
    if (words.length) found.push(element("p", {}, words.join("\n")))
    if (rows.length) found.push(table(rows.map((line) => line.match(ROW)[1].split("|").map((cell) => cell.trim()))))
  }
  return found
}

function table([first, ...rest]) {
  const row = (cells, tag) => element("tr", {}, ...cells.map((cell) => element(tag, {}, cell)))
  const body = element("tbody", {}, ...rest.map((cells) => row(cells, "td")))
  return element("table", {}, element("thead", {}, row(first, "th")), body)
}
