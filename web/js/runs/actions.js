// What can be done with a run: its LoRA used, the same run again or a longer one, the folder deleted.

import { app } from "../../../../scripts/app.js"
import { refresh as refreshLoras } from "../library/library.js"
import { eachNode, nodeOf } from "../page/nodes.js"
import { addToStack } from "../stack/add.js"
import { doing, number, sure, tell } from "./ask.js"
import { leave } from "./choice.js"
import * as store from "./store.js"
import { bytes } from "./words.js"
import { word } from "../page/words.js"

const TRAIN = "LoraLoom_TrainLora"

/** Copies the LoRA of a step into the loras folder and puts it on the stack of the workflow on screen. */
export function useStep(run, step) {
  return doing(word("Step {step} of {name} could not be used", { step, name: run.name }), async () => {
    const name = await store.use(run.id, step)
    await refreshLoras()
    addToStack(name)
    tell("success", word("{name} is on Load LoRA Stack", { name }), word("Ctrl+Z takes it off again; the file stays in the loras folder."))
    return name
  })
}

/** Opens the workflow of a run in a tab of its own; gives whether it did. */
export function rerun(run) {
  return doing(word("The workflow of {name} could not be opened", run), async () => {
    await openWorkflow(run)
    tell("info", word("The workflow of {name} is open", run), word("Change what you like and press Run."))
  })
}

/** The same workflow with more steps for the training. */
export async function trainOn(run) {
  const { state, step, total } = run
  const message = state === "finished" ? word("It was trained for {total} steps. Train how many in all?", { total })
    : word("It stopped at step {step} of {total}. Train how many in all?", { step, total })
  const steps = await number(word("Continue {name}", run), message, proposed(run), run.step)
  if (steps === null) return
  await doing(word("{name} could not be continued", run), async () => {
    await openWorkflow(run)
    const widget = stepsOf(trainNode(run))
    if (!widget) throw new Error(word("Its workflow is open, but no one Train LoRA has the number of steps; set it there."))
    widget.value = steps
    widget.callback?.(steps)
    app.graph.setDirtyCanvas(true, true)
    tell("info", word("Train LoRA is set to {steps} steps", { steps }), word("Press Run: it goes on from step {step}.", run))
  })
}

export async function remove(run) {
  const what = word("This deletes its folder with the state, LoRAs, previews and log: {size}.", { size: bytes(run.size) })
  const message = `${what} ${word("What was copied into the loras folder stays.")}`
  if (!await sure(word("Delete {name}?", run), message)) return
  leave(run.id, true)
  await doing(word("{name} could not be deleted", run), () => store.remove(run.id))
  leave(run.id, false)
}

export function pause(run) {
  return doing(word("{name} could not be paused", run), () => store.pause(run.id, run.prompt_id))
}

/** Half as many again as were meant, or what is left of them, in round hundreds. */
function proposed({ step, total }) {
  if (step < total) return total
  return total >= 200 ? Math.ceil(total * 1.5 / 100) * 100 : total * 2
}

async function openWorkflow(run) {
  const workflow = await store.workflowOf(run.id)
  if (!workflow) throw new Error(word("Its folder has no workflow: it was queued without one, or by an older version."))
  await app.loadGraphData(workflow, true, true, freeName(word("{name} again", run)))
}

/** A name that no workflow has, so that none is replaced. */
function freeName(wanted) {
  const base = wanted.replace(/[^\p{L}\p{N} ._-]+/gu, "_").slice(0, 80)
  const taken = (name) => app.extensionManager.workflow?.getWorkflowByPath?.(`workflows/${name}.json`)
  let name = base
  for (let count = 2; taken(name); count++) name = `${base} (${count})`
  return name
}

function stepsOf(node) {
  const linked = node?.inputs?.some((input) => input.name === "steps" && input.link != null)
  return linked ? undefined : node?.widgets?.find((widget) => widget.name === "steps")
}

/** The node that trained it, or the only one that trains. */
function trainNode(run) {
  const named = run.node && nodeOf(run.node)
  if (named?.comfyClass === TRAIN) return named
  const found = new Set()
  eachNode(app.rootGraph, (node) => node.comfyClass === TRAIN && found.add(node))
  return found.size === 1 ? [...found][0] : undefined
}
