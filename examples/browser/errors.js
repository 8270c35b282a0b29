/** An error as the page knows it from the server: a code, which has words, and a status. */
export class ApiError extends Error {
  constructor(code, message, status = 400) {
    super(message);
    this.code = code;
    this.status = status;
  }
}
