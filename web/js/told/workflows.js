// Which open workflow a prompt belongs to. Node ids do not tell: every workflow has a node 1, and a file that is opened
// twice has the same ids twice.

import { api } from "../../../../scripts/api.js"
import { app } from "../../../../scripts/app.js"

const NO_ID = "00000000-0000-0000-0000-000000000000" // of a graph that was never saved nor opened
const AGAIN = 1000 // ms until the workflow of a prompt is looked for again, as it may be open by then
const MOST = 200 // prompts that are remembered
const owners = new Map() // promises of workflows, by prompt
const searches = new Map() // what ends the search for one, by prompt
const answers = new Map() // promises of what the server has with a prompt that is not known here, by prompt

/** The workflow on screen, as the object that goes with it from its opening to its closing, through every undo. */
export function onScreen() {
  return trackerOf(app.extensionManager?.workflow?.activeWorkflow)
}

/** Whether the graph on screen is not yet, or no longer, that of the workflow on screen. */
export function isLoading() {
  return Boolean(window.comfyAPI?.changeTracker?.ChangeTracker?.isLoadingGraph)
}

/** Calls `then` when the graph on screen is that of the workflow on screen. */
export function whenLoaded(then) {
  if (isLoading()) requestAnimationFrame(() => whenLoaded(then))
  else then()
}

/** The workflow that a prompt was queued from in this window, before a reload of it, too; undefined for any other. */
export function ownerOf(prompt) {
  if (!owners.has(prompt)) remember(prompt, find(prompt))
  return owners.get(prompt)
}

/**
 * Remembers what was queued, as the front end forgets it when it has run. A search that goes on ends with it: all that
 * wait for one prompt's workflow wait for one promise, and so go on in the order in which they came.
 */
export function hearQueued() {
  api.addEventListener("promptQueued", () => {
    for (const prompt of Object.keys(jobs())) {
      const owner = queuedBy(prompt)
      if (owner && searches.has(prompt)) searches.get(prompt)(owner)
      else if (owner) remember(prompt, Promise.resolve(owner))
    }
  })
}

function remember(prompt, promise) {
  keep(owners, prompt, promise)
  promise.then((owner) => owner ?? setTimeout(() => owners.get(prompt) === promise && owners.delete(prompt), AGAIN))
}

function keep(map, prompt, promise) {
  map.set(prompt, promise)
  if (map.size > MOST) map.delete(map.keys().next().value)
}

function find(prompt) {
  return new Promise((then) => {
    searches.set(prompt, then)
    search(prompt).then(then, () => then(undefined)).finally(() => searches.delete(prompt))
  })
}

async function search(prompt) {
  while (app.processingQueue && !queuedBy(prompt)) await new Promise((then) => setTimeout(then, 50))
  return queuedBy(prompt) ?? openAs(await stored(prompt))
}

function queuedBy(prompt) {
  return trackerOf(jobs()[prompt]?.workflow)
}

/** The front end's own record of what was queued here: a store that it has no method for. */
function jobs() {
  const { $pinia } = document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties ?? {}
  return $pinia?.state.value.execution?.queuedJobs ?? {}
}

/** The id of the workflow that the server has with a prompt, and whose it is: asked once, however often it is told of. */
function stored(prompt) {
  if (!answers.has(prompt)) keep(answers, prompt, ask(prompt))
  return answers.get(prompt)
}

async function ask(prompt) {
  const answer = await api.fetchApi(`/jobs/${prompt}`).catch(() => undefined)
  if (!answer) answers.delete(prompt) // the server is away
  if (!answer?.ok) return {}
  const { workflow_id: id, workflow } = await answer.json()
  return { id, client: workflow?.extra_data?.client_id }
}

/** The open workflow of that id, if the prompt is this window's. */
function openAs({ id, client }) {
  if (!id || id === NO_ID || (client && client !== api.clientId)) return undefined
  const { activeWorkflow, openWorkflows = [] } = app.extensionManager.workflow
  const same = [activeWorkflow, ...openWorkflows].filter((each) => trackerOf(each)?.activeState?.id === id)
  return trackerOf(same[0])
}

function trackerOf(workflow) {
  return workflow?.changeTracker ?? undefined
}
