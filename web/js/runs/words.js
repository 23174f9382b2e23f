// A run in words.

import { word } from "../page/words.js"

const UNITS = [["years", 31536000], ["months", 2592000], ["weeks", 604800], ["days", 86400], ["h", 3600], ["min", 60]]

/** A span of time as on a clock: 0:09, 9:40, 1:05:00. */
export function clock(seconds) {
  const all = Math.max(0, Math.round(seconds))
  const [hours, minutes, rest] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60]
  const two = (number) => String(number).padStart(2, "0")
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`
}

/** When it was, seen from now: "3 h ago". */
export function ago(changed, now = Date.now() / 1000) {
  const past = Math.max(0, now - changed)
  const [unit, length] = UNITS.find(([, length]) => past >= length) ?? []
  if (!unit) return "just now"
  const count = Math.floor(past / length)
  return `${count} ${count === 1 ? unit.replace(/s$/, "") : unit} ago`
}

export function bytes(size) {
  const power = Math.min(3, Math.max(0, Math.floor(Math.log10(Math.max(1, size)) / 3)))
  const value = size / 1000 ** power
  return `${power && value < 10 ? value.toFixed(1) : Math.round(value)} ${["bytes", "kB", "MB", "GB"][power]}`
}

export function percent({ step, total }) {
  return total ? Math.floor(100 * Math.min(1, step / total)) : 0
}

/** What became of a run, or where it is. */
export function standing(run) {
  if (run.state === "running") return run.step ? word("Step {step} of {total}", run) : run.phase ?? word("preparing")
  if (run.state === "finished") return word("Finished, {steps}", { steps: steps(run.total) })
  return word("Stopped at {step} of {total}", run)
}

export function left(run) {
  return Number.isFinite(run.seconds_left) ? word("{time} left", { time: clock(run.seconds_left) }) : ""
}

/** The settings that are not those of the run before, as "rank 8 \u2192 16". */
export function differences(run) {
  return (run.differs ?? []).map(([setting, was, is]) => `${setting} ${plain(was)} \u2192 ${plain(is)}`)
}

export function plain(value) {
  return value === null || value === undefined || value === "" ? "none" : String(value)
}

function steps(count) {
  return count === 1 ? word("1 step") : word("{total} steps", { total: count })
}
