/** The OpenAPI document as a page to read. */

const told = await (await fetch("openapi.json")).json();
const schemas = told.components.schemas;

document.getElementById("base").textContent = `${location.origin}/v1`;
for (const [path, methods] of Object.entries(told.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    document.getElementById("operations").append(shown(method, path, operation));
  }
}

function shown(method, path, { summary, parameters = [], requestBody }) {
  const details = document.createElement("details");
  const title = document.createElement("summary");
  title.append(element("code", `${method.toUpperCase()} ${path}`), ` ${summary}`);
  details.append(title);
  const body = requestBody?.content["application/json"]?.schema;
  const rows = parameters.map(({ name, schema }) => [name, schema, false]);
  if (body) rows.push(...fieldsOf(resolved(body)));
  if (rows.length === 0) details.append(element("p", "No parameters."));
  else details.append(tableOf(rows));
  return details;
}

function tableOf(rows) {
  const table = document.createElement("table");
  for (const [name, schema, required] of rows) {
    const row = table.insertRow();
    row.insertCell().append(element("code", name));
    row.insertCell().textContent = typeOf(schema) + (required ? ", required" : "");
  }
  return table;
}

function fieldsOf(schema) {
  const required = schema.required ?? [];
  return Object.entries(schema.properties ?? {}).map(([name, field]) =>
    [name, field, required.includes(name)]);
}

function resolved(schema) {
  return schema.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema;
}

/** A type in few words: "integer 1 to 9", "text", "list of text". */
function typeOf(schema) {
  const own = resolved(schema);
  const kinds = own.anyOf?.filter((kind) => kind.type !== "null").map(typeOf);
  if (kinds) return [...new Set(kinds)].join(" or ");
  if (own.enum) return `only ${own.enum.filter((v) => v !== null).map((v) => JSON.stringify(v)).join(", ") || "null"}`;
  if (own.const !== undefined) return JSON.stringify(own.const);
  if (own.type === "array") return `list of ${own.items ? typeOf(own.items) : "anything"}`;
  if (own.type === "object" && own.properties) {
    return `{ ${fieldsOf(own).map(([name, field]) => `${name}: ${typeOf(field)}`).join("; ")} }`;
  }
  const least = own.minimum ?? own.exclusiveMinimum;
  const most = own.maximum ?? own.exclusiveMaximum;
  const range = [least !== undefined && `from ${least}`, most !== undefined && `to ${most}`];
  return [own.type === "string" ? "text" : own.type, ...range.filter(Boolean)].join(" ");
}

function element(kind, words) {
  const made = document.createElement(kind);
  made.textContent = words;
  return made;
}
