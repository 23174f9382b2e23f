// A handle that moves a row of a list, by pointer; what it means is told when the row is let go.

/** `moved(row)` is called when the handle's row, a child of `list`, was dropped. */
export function dragRow(handle, list, moved) {
  const rowOf = () => handle.closest(".loom-row")
  handle.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return
    event.preventDefault()
    handle.focus()
    handle.setPointerCapture(event.pointerId)
    rowOf().classList.add("loom-moving")
  })
  handle.addEventListener("pointermove", (event) => {
    if (handle.hasPointerCapture(event.pointerId)) dragTo(list, rowOf(), event.clientY)
  })
  const end = () => {
    const row = rowOf()
    if (!row?.classList.contains("loom-moving")) return
    row.classList.remove("loom-moving")
    moved(row)
  }
  handle.addEventListener("pointerup", end)
  handle.addEventListener("lostpointercapture", end)
}

/** The dragged row goes where the pointer is. */
function dragTo(list, row, y) {
  const others = [...list.children].filter((other) => other !== row)
  const below = others.find((other) => y < middle(other)) ?? null
  if (row.nextElementSibling !== below) moveBefore(list, row, below)
}

function middle(row) {
  const { top, height } = row.getBoundingClientRect()
  return top + height / 2
}

/** Without losing focus and pointer where the browser can. */
function moveBefore(list, row, below) {
  if (list.moveBefore) list.moveBefore(row, below)
  else list.insertBefore(row, below)
}
