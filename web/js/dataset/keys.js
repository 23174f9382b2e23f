// The keyboard of the page. What a key does in a field is the field's, but for undoing once it has nothing to take back.

/** Does what a key on the page says; nothing of it reaches the graph behind. */
export function pressed(page, event) {
  event.stopPropagation()
  const field = event.target.closest("input:not([type=checkbox], [type=range], [type=button]), textarea, select")
  const control = event.ctrlKey || event.metaKey
  if (control && /^[zy]$/i.test(event.key) && !typing(page, field)) {
    event.preventDefault()
    if (event.key.toLowerCase() === "y" || event.shiftKey) page.book.redo()
    else page.book.undo()
  } else if (event.key === "Escape") {
    event.preventDefault()
    if (page.selected.size && !field) page.selectNone()
    else page.close()
  } else if (!field) command(page, event, control)
}

/** Whether a field has something of its own to take back. */
function typing(page, field) {
  return field && field.value !== (field.defaultValue || "") && !isSaved(page, field)
}

function isSaved(page, field) {
  const card = [...page.grid.cards.values()].find((each) => each.text === field)
  return card ? card.saved() === field.value : false
}

function command(page, event, control) {
  const { grid } = page
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: grid.columns, ArrowUp: -grid.columns }[event.key]
  const onShot = event.target.closest(".loom-set-pick")
  if (control && event.key.toLowerCase() === "a") page.selectAll()
  else if (by && onShot) grid.focus(grid.beside(grid.current, by))
  else if (event.key === "Home" && onShot) grid.focus(page.shown[0]?.name)
  else if (event.key === "End" && onShot) grid.focus(page.shown.at(-1)?.name)
  else if (event.key === "Enter" && onShot) grid.focus(grid.current, true)
  else if (event.key === "Delete" && page.selected.size && !page.book.locked) page.takeOut()
  else return
  event.preventDefault()
}
