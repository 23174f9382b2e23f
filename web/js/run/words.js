// What a run is now, in words: a headline, what is beside it, and what comes next.

import { clock } from "../runs/words.js"
import { spoken, word } from "../page/words.js"

const LEVEL = 0.02 // of a loss: less is no change

/** `{headline, beside, next}` of a run; `trend` are its smoothed losses. */
export function standing(run, trend = []) {
  if (run.state === "running") return running(run, trend)
  if (run.state === "finished") return finished(run)
  return {
    headline: run.step ? word("Stopped at {step} of {total}, kept", run) : word("Stopped before anything was kept"),
    next: run.step ? word("Queue again to go on.") : word("Queue again to start."),
  }
}

function running({ step, total, phase, seconds_left: left, loss }, trend) {
  if (!step) return { headline: sentence(phase || "preparing"), beside: "", next: "" }
  const busy = phase && phase !== "training" && !phase.startsWith("step ") ? sentence(phase) : ""
  const known = Number.isFinite(loss) ? `${word("loss {loss}", { loss: loss.toPrecision(3) })}${direction(trend)}` : ""
  return { headline: word("{step} of {total}", { step, total }), beside: Number.isFinite(left) ? word("{time} left", { time: clock(left) }) : "", next: busy || known }
}

function finished({ total, seconds, best, kept, summary }) {
  const chosen = kept && kept !== total && !best ? word("step {step} was kept", { step: kept }) : ""
  return {
    headline: seconds ? word("Done in {time}", { time: clock(seconds) }) : word("Done"),
    beside: best ? word("best by validation: {best}", { best }) : word("{total} steps", { total }),
    next: [spoken(summary?.split("\n")[1]), chosen].filter(Boolean).join(", "),
  }
}

/** In two words at most, for a node that is seen from afar. */
export function fromAfar(run) {
  if (!run) return ["", ""]
  const count = `${run.step} / ${run.total}`
  if (run.state === "running") return [count, Number.isFinite(run.seconds_left) ? word("{time} left", { time: clock(run.seconds_left) }) : ""]
  if (run.state === "finished") return [word("Done"), run.seconds ? clock(run.seconds) : ""]
  return [word("Stopped"), count]
}

/** Whether the loss falls, seen over the last fifth of what there is. */
function direction(losses) {
  if (losses.length < 10) return ""
  const [now, before] = [losses[losses.length - 1], losses[Math.floor(losses.length * 0.8)]]
  const change = (now - before) / Math.abs(before || 1)
  return change < -LEVEL ? word(", falling") : change > LEVEL ? word(", rising") : word(", level")
}

function sentence(text) {
  const said = spoken(text)
  return said.slice(0, 1).toUpperCase() + said.slice(1)
}
