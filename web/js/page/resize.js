// Drawing anew what is as large as its box.

/** Calls `then(owner, width, height)` whenever the box has another size, as long as something else knows the owner. */
export function whenResized(box, owner, then) {
  const known = new WeakRef(owner)
  const observer = new ResizeObserver(([entry]) => {
    const found = known.deref()
    if (found) then(found, Math.round(entry.contentRect.width), Math.round(entry.contentRect.height))
    else observer.disconnect()
  })
  observer.observe(box)
}
