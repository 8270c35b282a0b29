/** What recall proposes, looked up as newllm/model/recall/reference.py does: see there. */

const ORDERS = [1, 2, 3, 5];
const WAYS = 4;
const TIMES_UNIT = 2 ** 16;
const CHECK_UNIT = 2 ** 20;
const CHECKS = 2n ** 11n;
const HASH_FACTOR = 1_640_531_527n;
const HASH_PRIME = 2n ** 31n - 1n;

/**
 * The longest known context of the last tokens, { order, times, token }, or null.
 *
 * tables: slots, an Int32Array of all tables; recent: the last tokens, the last one first, each one
 * more than its id, 0 for none; ways: slots of a set.
 */
export function longestMatch(tables, recent, ways) {
  const sets = tables.length / ORDERS.length / ways;
  for (const { order, set, check } of places(recent, BigInt(sets)).reverse()) {
    const first = (order * sets + set) * ways;
    const value = tables.subarray(first, first + ways)
      .find((slot) => slot > 0 && Math.floor(slot / CHECK_UNIT) === check);
    if (value) {
      const rest = value % CHECK_UNIT;
      return { order, times: Math.floor(rest / TIMES_UNIT), token: rest % TIMES_UNIT };
    }
  }
  return null;
}

/** The token that followed the last two or more tokens where they stood before, or null. */
export function proposed(tables, recent, ways) {
  const match = longestMatch(tables, recent, ways);
  return match && ORDERS[match.order] >= 2 ? match.token : null;
}

/** The tables of a state from before there were sets, as `in_sets` of reference.py moves them. */
export function inSets(tables) {
  const size = tables.length / ORDERS.length;
  const sets = size / WAYS;
  return tables.map((_, to) => {
    const [order, set, way] = [Math.floor(to / size), Math.floor((to % size) / WAYS), to % WAYS];
    const place = way * sets + set;
    const slot = tables[order * size + place];
    const hash = Math.floor(slot / CHECK_UNIT) * size + place;
    const check = Math.floor(hash / sets) % Number(CHECKS);
    return slot > 0 ? (slot % CHECK_UNIT) + CHECK_UNIT * check : 0;
  });
}

/** Number of the table, set and check of the contexts that the last tokens are. */
function places(recent, sets) {
  const found = [];
  let hash = 0n;
  for (const [i, token] of recent.entries()) {
    if (token === 0) break; // the document has no more
    hash = (hash * HASH_FACTOR + BigInt(token)) % HASH_PRIME;
    const order = ORDERS.indexOf(i + 1);
    if (order < 0) continue;
    found.push({ order, set: Number(hash % sets), check: Number((hash / sets) % CHECKS) });
  }
  return found;
}
