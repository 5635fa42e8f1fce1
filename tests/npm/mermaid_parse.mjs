// Parses each file named on the command line with Mermaid; exit code 1 when it refuses one.
import { readFileSync } from "node:fs";
import mermaid from "mermaid";

let refused = 0;
for (const file of process.argv.slice(2)) {
  try {
    const found = await mermaid.parse(readFileSync(file, "utf8"));
    console.log(`${file}: ${found.diagramType}`);
  } catch (error) {
    refused += 1;
    console.log(`${file}: refused: ${error.message}`);
  }
}
process.exit(refused ? 1 : 0);
