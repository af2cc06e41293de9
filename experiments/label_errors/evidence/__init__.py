"""Which rank finds planted label errors: many tables, cleanlab and nearest rows beside ours."""
