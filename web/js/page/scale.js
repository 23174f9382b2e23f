// The arithmetic of a chart: round ticks, points thinned to what can be seen, the nearest one, numbers for people.

const ROUND = [1, 2, 5, 10]

/** A scale from the lowest to the highest of these numbers, widened to about `count` round ticks. */
export function scaleOf(numbers, count) {
  const [low, high] = rangeOf(numbers)
  const step = roundStep((high - low) / Math.max(1, count))
  const from = Math.floor(low / step + 1e-9) * step
  const to = Math.ceil(high / step - 1e-9) * step
  return { from, to, ticks: ticks(from, to, step), step }
}

/** Round ticks within bounds that stay as they are. */
export function ticksWithin(from, to, count) {
  const step = roundStep((to - from) / Math.max(1, count))
  return ticks(Math.ceil(from / step - 1e-9) * step, to, step)
}

function ticks(from, to, step) {
  const count = Math.floor((to - from) / step + 1e-6)
  return Array.from({ length: count + 1 }, (_, at) => from + at * step)
}

function roundStep(wanted) {
  const magnitude = 10 ** Math.floor(Math.log10(wanted))
  return magnitude * ROUND.find((each) => each * magnitude >= wanted * (1 - 1e-9))
}

/** The range of what is finite; one that has a height, even of one number or none. */
function rangeOf(numbers) {
  let low = Infinity
  let high = -Infinity
  for (const each of numbers) {
    if (!Number.isFinite(each)) continue
    if (each < low) low = each
    if (each > high) high = each
  }
  if (low > high) return [0, 1]
  if (low < high) return [low, high]
  const room = Math.abs(low) / 10 || 1
  return [low - room, high + room]
}

/** What all but the lowest and highest twentieth of some numbers lie between. */
export function middleOf(numbers) {
  const stride = Math.ceil(numbers.length / 500)
  const sorted = numbers.filter((value, at) => at % stride === 0 && Number.isFinite(value)).sort((a, b) => a - b)
  return sorted.length ? [sorted[Math.floor(sorted.length * 0.05)], sorted[Math.floor(sorted.length * 0.95)]] : []
}

/** The text of a tick, with the decimals that its scale's step asks for. */
export function tickText(value, step) {
  if (step >= 1000 && value) return `${value / 1000}k`
  if (step < 0.0005) return value ? short(value) : "0"
  return value.toFixed(Math.min(4, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))))
}

/** A number in about four characters. */
export function short(value) {
  if (!Number.isFinite(value)) return "\u2013"
  const size = Math.abs(value)
  if (size >= 1000 || value === 0) return String(Math.round(value))
  if (size < 0.001) return value.toExponential(1).replace(/\.0e/, "e")
  return value.toPrecision(3)
}

/** The place of the step that is nearest in a rising list; -1 in an empty one. */
export function nearest(steps, step) {
  const at = after(steps, step)
  if (at === 0) return steps.length ? 0 : -1
  return at < steps.length && steps[at] - step < step - steps[at - 1] ? at : at - 1
}

/** How many of a rising list are not above a step. */
function after(steps, step) {
  let low = 0
  let high = steps.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (steps[middle] <= step) low = middle + 1
    else high = middle
  }
  return low
}

/** The points of a curve with at most its lowest and highest in every column of a picture, in the curve's order. */
export function thinned(steps, values, column) {
  const kept = []
  let [now, low, high] = [NaN, -1, -1]
  const keep = () => low >= 0 && kept.push(...(low === high ? [low] : low < high ? [low, high] : [high, low]))
  for (let at = 0; at < steps.length; at++) {
    if (!Number.isFinite(values[at])) continue
    const next = column(steps[at])
    if (next !== now) {
      keep()
      ;[now, low, high] = [next, at, at]
    } else if (values[at] < values[low]) low = at
    else if (values[at] > values[high]) high = at
  }
  keep()
  return kept
}
