// The list of LoRA files in the fields that choose one. The server sends it once, in the definition of Convert LoRA, for
// all of our nodes: with thousands of files each copy would be as large as all other definitions together.

const HOLDER = { node: "LoraLoom_ConvertLora", input: "lora" }

let files = []

/**
 * Completes the definition of a node before the front end makes anything of it; Convert LoRA comes before those that ask
 * for its list, also when definitions are fetched anew.
 */
export function complete(definition) {
  const inputs = Object.entries({ ...definition.input?.required, ...definition.input?.optional })
  for (const [name, [, options]] of inputs) {
    if (definition.name === HOLDER.node && name === HOLDER.input) files = options.options ?? []
    if (!options?.lora_files) continue
    options.options = [...options.options, ...files]
    delete options.lora_files // once, should it be registered again
  }
}
