"""The product service: stock, sales, and the reservations that decide every order's fate."""
