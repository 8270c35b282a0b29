"""Programs for working on New-LLM; no part of the package."""
