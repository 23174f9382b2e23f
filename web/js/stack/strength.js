// A number that is typed, dragged sideways or stepped with the arrow keys; the wheel is left to the canvas.

import { element } from "../page/dom.js"
import { LIMIT, number, strengthOf } from "../page/rows.js"

const STEP = 0.05
const FINE = 0.01 // with Shift
const PIXELS = 6 // of dragging for a step

/**
 * `get` and `set` are the value; `empty`, if given, is called when the field is cleared, else that is undone. `done` is
 * called when a change is complete.
 */
export function strengthField({ label, get, set, done, empty, follows }) {
  const field = element("input", {
    type: "text", className: "loom-number", autocomplete: "off", spellcheck: false, inputMode: "decimal",
    role: "spinbutton", "aria-label": label, "aria-valuemin": -LIMIT, "aria-valuemax": LIMIT,
  })
  const show = () => {
    field.value = Number(get().toFixed(2)) === get() ? get().toFixed(2) : number(get())
    field.setAttribute("aria-valuenow", number(get()))
    field.classList.toggle("loom-follows", Boolean(follows?.()))
    field.classList.toggle("loom-zero", get() === 0)
    field.classList.remove("loom-typing")
  }
  const change = (value) => {
    set(Math.max(-LIMIT, Math.min(LIMIT, Number(value.toFixed(6)))))
    show()
  }
  const typed = () => {
    const value = strengthOf(field.value)
    if (value !== null && value !== get()) change(value)
    else if (field.value.trim() === "" && empty) empty()
    show()
    done()
  }

  field.addEventListener("input", () => field.classList.add("loom-typing"))
  field.addEventListener("change", typed)
  field.addEventListener("keydown", (event) => {
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key]
    if (way && !event.altKey) {
      event.preventDefault()
      change(stepped(get(), way, event.shiftKey ? FINE : STEP))
      done()
    } else if (event.key === "Enter") field.blur()
    else if (event.key === "Escape") {
      show()
      field.blur()
    }
  })
  drag(field, get, change, done)
  show()
  return { field, show }
}

/** Sideways dragging; a press without it focuses the field for typing. */
function drag(field, get, change, done) {
  let start = null
  field.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || document.activeElement === field) return
    event.preventDefault()
    start = { x: event.clientX, value: get(), moved: false }
    field.setPointerCapture(event.pointerId)
  })
  field.addEventListener("pointermove", (event) => {
    if (!start) return
    const steps = Math.trunc((event.clientX - start.x) / PIXELS)
    start.moved ||= Math.abs(event.clientX - start.x) > PIXELS / 2
    if (steps || start.moved) change(stepped(start.value, steps, event.shiftKey ? FINE : STEP))
  })
  const end = (event) => {
    if (!start) return
    const { moved } = start
    start = null
    field.releasePointerCapture(event.pointerId)
    if (moved) return done()
    field.focus()
    field.select()
  }
  field.addEventListener("pointerup", end)
  field.addEventListener("pointercancel", end)
}

function stepped(value, steps, step) {
  return Math.round((value + steps * step) * 1e6) / 1e6
}
