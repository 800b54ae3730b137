"""The demo: three tenants teach one base three tasks that it can not do, and are served together."""
