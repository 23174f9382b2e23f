// A run in words.

import { phrase, spoken, word } from "../page/words.js"

const PAST = [ // how long ago in seconds, in words for one and for more
  [31536000, phrase("1 year ago"), phrase("{count} years ago")], [2592000, phrase("1 month ago"), phrase("{count} months ago")],
  [604800, phrase("1 week ago"), phrase("{count} weeks ago")], [86400, phrase("1 day ago"), phrase("{count} days ago")],
  [3600, phrase("{count} h ago"), phrase("{count} h ago")], [60, phrase("{count} min ago"), phrase("{count} min ago")],
]

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
  const [length, one, many] = PAST.find(([length]) => past >= length) ?? []
  if (!length) return word("just now")
  const count = Math.floor(past / length)
  return word(count === 1 ? one : many, { count })
}

export function bytes(size) {
  const power = Math.min(3, Math.max(0, Math.floor(Math.log10(Math.max(1, size)) / 3)))
  const value = size / 1000 ** power
  return `${power && value < 10 ? value.toFixed(1) : Math.round(value)} ${[word("bytes"), "kB", "MB", "GB"][power]}`
}

export function percent({ step, total }) {
  return total ? Math.floor(100 * Math.min(1, step / total)) : 0
}

/** What became of a run, or where it is. */
export function standing(run) {
  if (run.state === "running") return run.step ? word("Step {step} of {total}", run) : spoken(run.phase) ?? word("preparing")
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
  return value === null || value === undefined || value === "" ? word("none") : String(value)
}

function steps(count) {
  return count === 1 ? word("1 step") : word("{total} steps", { total: count })
}
