// A report in a dialog.

import { copy } from "../page/clipboard.js"
import { openTitled } from "../page/dialog.js"
import { element } from "../page/dom.js"
import { word } from "../page/words.js"

const ROW = /^\|(.*)\|$/ // of a table, as reports write them
const RULE = /^[\s|:-]+$/ // below the first row

/** Shows a text with its tables as tables. */
export function openText(title, text) {
  const button = element("button", { type: "button" }, word("Copy"))
  const foot = element("div", { className: "loom-body-foot" }, button)
  const shown = element("div", { className: "loom-dialog-text", tabIndex: 0, role: "document" }, ...parts(text))
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text, foot)) ? word("Copied") : word("Select it to copy")
  })
  return openTitled("loom-body-text", title, [shown, foot])
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
