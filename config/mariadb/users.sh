#!/bin/sh
# One database and one user for each service, with no more rights than it needs. MariaDB's image runs this file, as
# root of the database, the first time that it starts on an empty volume; passwords come from the environment.
#
#   product, order, coordinator, dead_letters   read and write the rows of their own database, and nothing else
#   dtm                                         the same, in the database of dtm.sql
#   schema                                      makes and changes tables (`seckill db upgrade`), in these databases
#   auditor                                     reads, for `seckill audit` and the demo
#
# To change a password later: ALTER USER product IDENTIFIED BY '…', then restart the service with the new one.

( # a shell of its own: the image runs this file if it is executable, and otherwise reads it into its own shell
set -eu

sql() {
  MYSQL_PWD="$MARIADB_ROOT_PASSWORD" mariadb --protocol=socket --user=root "$@"
}

# Inside a string in single quotes, a quote is written twice and a backslash as two.
quoted() {
  printf "'%s'" "$(printf %s "$1" | sed -e 's/\\/\\\\/g' -e "s/'/''/g")"
}

user() { # name, password
  printf "CREATE USER IF NOT EXISTS '%s'@'%%' IDENTIFIED BY %s;\n" "$1" "$(quoted "$2")"
}

{
  user schema "$SCHEMA_DB_PASSWORD"
  user auditor "$AUDITOR_DB_PASSWORD"
  user product "$PRODUCT_DB_PASSWORD"
  user order "$ORDER_DB_PASSWORD"
  user coordinator "$COORDINATOR_DB_PASSWORD"
  user dead_letters "$DEAD_LETTERS_DB_PASSWORD"
  user dtm "$DTM_DB_PASSWORD"
  for name in product order coordinator dead_letters; do
    echo "CREATE DATABASE IF NOT EXISTS \`$name\` CHARACTER SET utf8mb4;"
    echo "GRANT SELECT, INSERT, UPDATE, DELETE ON \`$name\`.* TO '$name'@'%';"
    echo "GRANT ALL ON \`$name\`.* TO 'schema'@'%';"
    echo "GRANT SELECT ON \`$name\`.* TO 'auditor'@'%';"
  done
  echo "GRANT SELECT, INSERT, UPDATE, DELETE ON dtm.* TO 'dtm'@'%';"
} | sql
)
