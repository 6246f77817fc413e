"""Speed against the budgets."""
