#!/bin/sh
# Says how to ask the service: what_to_try.sh FOLDER_OF_PICTURES URL
set -eu
pictures=$1 url=$2
set -- "$pictures"/*.png
first=$1

cat <<END

Open $url/ in a browser: a slider moves the answer.

Test pictures whose answer depends on alpha lie in $pictures. In another terminal, try:

  curl --data-binary @$first -H 'Content-Type: image/png' '$url/predict?alpha=0'
  curl --data-binary @$first -H 'Content-Type: image/png' '$url/predict?alpha=1.5'
  curl --data-binary @$first -H 'Content-Type: image/png' '$url/predict?alpha=3'

  curl $url/metrics | grep evenkeel_
  $url/openapi.json describes every request and its answer.

The service starts now; Ctrl-C ends it.

END
