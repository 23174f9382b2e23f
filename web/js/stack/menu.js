// The menu of a row: everything that can be done with it, also by keyboard.

import { find } from "../library/library.js"
import { copy } from "../page/clipboard.js"
import { showMenu } from "../page/menu.js"
import { showInfo } from "./info.js"
import { title } from "./row.js"
import { isRow, print } from "../page/rows.js"
import { word } from "../page/words.js"

/** `at`: an element or {x, y}. */
export function showRowMenu(editor, item, at) {
  const index = editor.items.indexOf(item)
  const [view, last] = [editor.views[index], editor.items.length - 1]
  const ofFile = isRow(item) ? fileEntries(editor, item, view, at) : []
  showMenu(word("Row {name}", { name: title(item) }), at, [
    ...ofFile,
    { label: word("Duplicate"), action: () => editor.insert(index + 1, [structuredClone(item)]) },
    { label: word("Move up"), keys: "Alt+\u2191", action: () => editor.move(index, index - 1), off: index === 0 },
    { label: word("Move down"), keys: "Alt+\u2193", action: () => editor.move(index, index + 1), off: index === last },
    { label: word("Copy as text"), keys: "Ctrl+C", action: () => copy(print([item]), editor.element) },
    null,
    { label: word("Remove"), keys: "Del", action: () => editor.remove(index) },
  ])
}

function fileEntries(editor, item, view, at) {
  const words = item.words ?? find(item.name)?.words ?? []
  const only = () => {
    for (const row of editor.items.filter(isRow)) row.on = row === item
    editor.commit()
  }
  return [
    { label: word("Info\u2026"), action: () => showInfo(item, at) },
    { label: word("Replace by another file\u2026"), action: () => editor.pick(item) },
    { label: view.details ? word("Fold") : word("Words, blocks, sampling"), action: () => view.unfold(!view.details) },
    { label: word("Copy trigger words"), action: () => copy(words.join(", "), editor.element), off: !words.length },
    { label: word("Only this row on"), action: only, off: editor.items.filter(isRow).length < 2 },
    null,
  ]
}
