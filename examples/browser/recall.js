/** What recall proposes, looked up as newllm/model/recall/reference.py does: see there. */

const ORDERS = [1, 2, 3, 5];
const TIMES_UNIT = 2 ** 16;
const CHECK_UNIT = 2 ** 20;
const CHECKS = 2n ** 11n;
const HASH_FACTOR = 1_640_531_527n;
const HASH_PRIME = 2n ** 31n - 1n;

/**
 * The longest known context of the last tokens, { order, times, token }, or null.
 *
 * tables: slots, an Int32Array of all tables; recent: the last tokens, the last one first, each one
 * more than its id, 0 for none.
 */
export function longestMatch(tables, recent) {
  const size = tables.length / ORDERS.length;
  for (const { order, slot, check } of places(recent, BigInt(size)).reverse()) {
    const value = tables[order * size + slot];
    if (value > 0 && Math.floor(value / CHECK_UNIT) === check) {
      const rest = value % CHECK_UNIT;
      return { order, times: Math.floor(rest / TIMES_UNIT), token: rest % TIMES_UNIT };
    }
  }
  return null;
}

/** The token that followed the last two or more tokens where they stood before, or null. */
export function proposed(tables, recent) {
  const match = longestMatch(tables, recent);
  return match && ORDERS[match.order] >= 2 ? match.token : null;
}

/** Number of the table, slot and check of the contexts that the last tokens are. */
function places(recent, size) {
  const found = [];
  let hash = 0n;
  for (const [i, token] of recent.entries()) {
    if (token === 0) break; // the document has no more
    hash = (hash * HASH_FACTOR + BigInt(token)) % HASH_PRIME;
    const order = ORDERS.indexOf(i + 1);
    if (order < 0) continue;
    found.push({ order, slot: Number(hash % size), check: Number((hash / size) % CHECKS) });
  }
  return found;
}
