// Ask the model in Node:  npm install && node client.mjs "Something warm and slow for a rainy evening"
// In the browser, import `load` and pass the address of this folder's parent as `local`.
//
// Needs @huggingface/transformers (see package.json). `client.json` beside it has the instruction that the model was
// trained with. A request's context goes on a line of its own behind it, as in training.
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

/** Load a model folder. `settings` is its client.json, `local` the folder that the folder is in. */
export async function load(settings, local) {
  env.allowRemoteModels = false;
  env.localModelPath = local;
  const tokenizer = await AutoTokenizer.from_pretrained(settings.model);
  const model = await AutoModelForCausalLM.from_pretrained(settings.model, { dtype: "fp32" });
  return { tokenizer, model, settings };
}

/** The greedy answer to a request, as the model writes it: JSON, unless the model made a mistake. */
export async function answer({ tokenizer, model, settings }, request, language) {
  const instruction = settings.instructions[language ?? Object.keys(settings.instructions)[0]];
  const messages = [
    { role: "system", content: instruction },
    { role: "user", content: request },
  ];
  const inputs = tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });
  const output = await model.generate({ ...inputs, do_sample: false, max_new_tokens: settings.max_tokens });
  const asked = inputs.input_ids.dims.at(-1);
  return tokenizer.decode(output.tolist()[0].slice(asked), { skip_special_tokens: true });
}

async function main() {
  const { readFile } = await import("node:fs/promises");
  const { createInterface } = await import("node:readline");
  const { dirname, join } = await import("node:path");
  const folder = import.meta.dirname;
  const settings = JSON.parse(await readFile(join(folder, "client.json"), "utf8"));
  const loaded = await load({ ...settings, model: folder.split(/[\\/]/).at(-1) }, dirname(folder));
  if (process.argv.length > 2) {
    console.log(await answer(loaded, process.argv[2], process.argv[3]));
    return;
  }
  // Without a request: one JSON object {"request", "language"} a line in, one JSON string a line out.
  for await (const line of createInterface({ input: process.stdin })) {
    const { request, language } = JSON.parse(line);
    console.log(JSON.stringify(await answer(loaded, request, language)));
  }
}

if (typeof process !== "undefined" && process.argv[1] === import.meta.filename) await main();
